//! PostgreSQL with pgvector: one table for each collection.
//!
//! Columns: `id`, `document` (JSON), `embedding`. Whose vectors they are is the comment of the table.
//! Searches look at all rows, so that they are exact, unless the table is given an index.

use std::sync::mpsc::{RecvTimeoutError, channel};

use ::postgres::{Client, Config, NoTls};

use super::error::StoreError;
use super::settings::{agreed, kept, text_of};
use super::target::StoreTarget;
use super::{StoreEntry, StoreHit, StoreOptions, StoreSettings, VectorStore, check};
use crate::document::Document;
use crate::vector::Metric;

pub(super) struct PostgresStore {
    connection: Connection,
    table: String,
    settings: StoreSettings,
}

/// A connection that is made anew where it is lost.
struct Connection {
    place: String,
    config: Config,
    options: StoreOptions,
    client: Option<Client>,
}

impl Connection {
    /// Runs work on the client, each attempt within its time. Work that can be repeated only.
    fn run<T: Send + 'static>(
        &mut self,
        work: impl Fn(&mut Client) -> Result<T, ::postgres::Error> + Clone + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (client, config, work) = (self.client.take(), self.config.clone(), work.clone());
            let (answer, answered) = channel();
            // A server that accepts a connection and then says nothing would be waited for forever.
            std::thread::spawn(move || {
                let mut client = match client.map_or_else(|| config.connect(NoTls), Ok) {
                    Ok(client) => client,
                    Err(error) => return drop(answer.send((None, Err(error)))),
                };
                let result = work(&mut client);
                let client = (!client.is_closed()).then_some(client);
                drop(answer.send((client, result)));
            });
            let error = match answered.recv_timeout(self.options.timeout) {
                Ok((client, Ok(value))) => {
                    self.client = client;
                    return Ok(value);
                }
                Ok((client, Err(error))) => {
                    self.client = client;
                    error
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(StoreError::Timeout {
                        place: self.place.clone(),
                        seconds: self.options.timeout.as_secs_f64(),
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.refused("the client failed"));
                }
            };
            if let Some(said) = error.as_db_error() {
                return Err(self.refused(said.message()));
            }
            if attempt >= self.options.attempts {
                let place = self.place.clone();
                let problem = full(&error);
                return Err(StoreError::Unreachable { place, problem });
            }
            std::thread::sleep(StoreOptions::pause(attempt));
        }
    }

    fn refused(&self, problem: &str) -> StoreError {
        StoreError::Refused {
            place: self.place.clone(),
            problem: problem.to_owned(),
        }
    }

    fn answer(&self, problem: impl ToString) -> StoreError {
        StoreError::Answer {
            place: self.place.clone(),
            problem: problem.to_string(),
        }
    }
}

/// An error with its causes.
fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl PostgresStore {
    pub(super) fn open(
        target: &StoreTarget,
        address: &str,
        wanted: Option<&StoreSettings>,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let place = target.to_string();
        let mut config: Config = address.parse().map_err(|e| StoreError::Address {
            text: place.clone(),
            problem: full(&e),
        })?;
        config.connect_timeout(options.timeout);
        config.application_name("frugal");
        let mut connection = Connection {
            place,
            config,
            options,
            client: None,
        };
        let table = format!("\"{}\"", target.collection);
        if let Some(comment) = comment(&mut connection, &table)? {
            let kept = kept(&connection.place, comment.as_deref())?;
            let settings = agreed(&connection.place, kept, wanted)?;
            return Ok(Self {
                connection,
                table,
                settings,
            });
        }
        let Some(wanted) = wanted else {
            let place = connection.place;
            return Err(StoreError::Absent { place });
        };
        let comment = text_of(&connection.place, wanted)?.replace('\'', "''");
        let dimension = wanted.encoder.dimension;
        // Escapes of the other kind are off, or the comment would be another.
        let sql = format!(
            "BEGIN; SET LOCAL standard_conforming_strings = on; CREATE EXTENSION IF NOT EXISTS vector; \
             CREATE TABLE IF NOT EXISTS {table} (id text PRIMARY KEY, document text NOT NULL, \
             embedding vector({dimension}) NOT NULL); COMMENT ON TABLE {table} IS '{comment}'; COMMIT"
        );
        connection.run(move |client| client.batch_execute(&sql))?;
        Ok(Self {
            connection,
            table,
            settings: wanted.clone(),
        })
    }
}

/// The comment of a table, if there is such a table.
fn comment(connection: &mut Connection, table: &str) -> Result<Option<Option<String>>, StoreError> {
    let table = table.to_owned();
    connection.run(move |client| {
        let sql = "SELECT obj_description(to_regclass($1)::oid, 'pg_class'), \
                   to_regclass($1) IS NOT NULL";
        let row = client.query_one(sql, &[&table])?;
        let there: bool = row.try_get(1)?;
        let comment: Option<String> = row.try_get(0)?;
        Ok(there.then_some(comment))
    })
}

/// As pgvector reads it.
fn literal(vector: &[f32]) -> String {
    let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
    format!("[{}]", numbers.join(","))
}

impl VectorStore for PostgresStore {
    fn place(&self) -> String {
        self.connection.place.clone()
    }

    fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    fn count(&mut self) -> Result<usize, StoreError> {
        let sql = format!("SELECT count(*) FROM {}", self.table);
        let count = self.connection.run(move |client| {
            let row = client.query_one(&sql, &[])?;
            row.try_get::<_, i64>(0)
        })?;
        usize::try_from(count).map_err(|e| self.connection.answer(e))
    }

    fn ids(&mut self) -> Result<Vec<String>, StoreError> {
        let sql = format!("SELECT id FROM {} ORDER BY id", self.table);
        self.connection.run(move |client| {
            let rows = client.query(&sql, &[])?;
            rows.iter().map(|row| row.try_get(0)).collect()
        })
    }

    fn documents(&mut self, ids: &[String]) -> Result<Vec<Option<Document>>, StoreError> {
        let sql = format!(
            "SELECT t.document FROM unnest($1::text[]) WITH ORDINALITY AS a(id, n) \
             LEFT JOIN {} t ON t.id = a.id ORDER BY a.n",
            self.table
        );
        let ids = ids.to_vec();
        let texts: Vec<Option<String>> = self.connection.run(move |client| {
            let rows = client.query(&sql, &[&ids])?;
            rows.iter().map(|row| row.try_get(0)).collect()
        })?;
        let read = |text: String| serde_json::from_str(&text);
        let documents = texts.into_iter().map(|text| text.map(read).transpose());
        let documents: Result<_, serde_json::Error> = documents.collect();
        documents.map_err(|e| self.connection.answer(e))
    }

    fn upsert(&mut self, entries: &[StoreEntry]) -> Result<(), StoreError> {
        check::entries(&self.settings, entries)?;
        let ids: Vec<String> = entries.iter().map(|e| e.document.id.clone()).collect();
        let documents = entries.iter().map(|e| serde_json::to_string(&e.document));
        let documents: Result<Vec<String>, _> = documents.collect();
        let documents = documents.map_err(|e| self.connection.answer(e))?;
        let vectors: Vec<String> = entries.iter().map(|e| literal(&e.vector)).collect();
        let sql = format!(
            "INSERT INTO {} (id, document, embedding) SELECT a, b, c::vector \
             FROM unnest($1::text[], $2::text[], $3::text[]) AS n(a, b, c) \
             ON CONFLICT (id) DO UPDATE SET document = excluded.document, \
             embedding = excluded.embedding",
            self.table
        );
        self.connection.run(move |client| {
            client.execute(&sql, &[&ids, &documents, &vectors])?;
            Ok(())
        })
    }

    fn delete(&mut self, ids: &[String]) -> Result<(), StoreError> {
        let sql = format!("DELETE FROM {} WHERE id = ANY($1::text[])", self.table);
        let ids = ids.to_vec();
        self.connection.run(move |client| {
            client.execute(&sql, &[&ids])?;
            Ok(())
        })
    }

    fn nearest(&mut self, vector: &[f32], k: usize) -> Result<Vec<StoreHit>, StoreError> {
        check::vector(&self.settings, vector, "the query vector")?;
        let metric = self.settings.encoder.metric;
        let operator = match metric {
            Metric::Cosine => "<=>",
            Metric::Ip => "<#>",
            Metric::L2 => "<->",
        };
        let sql = format!(
            "SELECT document, (embedding {operator} $1::text::vector)::float8 AS distance \
             FROM {} ORDER BY distance, id LIMIT $2",
            self.table
        );
        let (vector, limit) = (literal(vector), i64::try_from(k).unwrap_or(i64::MAX));
        let rows: Vec<(String, f64)> = self.connection.run(move |client| {
            let rows = client.query(&sql, &[&vector, &limit])?;
            let read = |row: &::postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
            rows.iter().map(read).collect()
        })?;
        let hits = rows.into_iter().map(|(text, distance)| {
            Ok(StoreHit {
                document: serde_json::from_str(&text)?,
                score: match metric {
                    Metric::Cosine => 1.0 - distance,
                    Metric::Ip => -distance,
                    Metric::L2 => -distance * distance,
                },
            })
        });
        let hits: Result<_, serde_json::Error> = hits.collect();
        hits.map_err(|e| self.connection.answer(e))
    }
}
