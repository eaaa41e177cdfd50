//! Linking all rows, one after another.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::error::VectorError;
use super::super::open::VectorIndex;
use super::links::Links;
use super::options::HnswOptions;
use super::rows::Rows;
use super::walk::{Near, around, descend};

/// Levels are drawn the same way each time.
const SEED: u64 = 100;
/// A level that hardly any vector reaches; higher ones change nothing.
const TOP: f64 = 30.0;

/// The graph of the rows of an index.
pub(super) fn linked(index: &VectorIndex, options: HnswOptions) -> Result<Links, VectorError> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let scale = 1.0 / (options.m as f64).ln();
    let level = |_| {
        let part: f64 = 1.0 - rng.random::<f64>();
        (-part.ln() * scale).min(TOP) as u32
    };
    let levels: Vec<u32> = (0..index.len()).map(level).collect();
    let mut links = Links::new(options.m, levels);
    let mut rows = Rows::new(index);
    for row in 1..index.len() as u32 {
        insert(&mut links, &mut rows, row, options)?;
    }
    Ok(links)
}

fn insert(
    links: &mut Links,
    rows: &mut Rows<'_>,
    row: u32,
    options: HnswOptions,
) -> Result<(), VectorError> {
    let target = rows.row(row)?;
    let (level, top) = (links.level(row), links.level(links.entry));
    let mut start = vec![descend(links, rows, &target, level.min(top))?];
    for level in (0..=level.min(top)).rev() {
        let ef = options.ef_construction.max(options.m);
        let near = around(links, rows, &target, &start, level, ef, &|_| true)?;
        let chosen = spread(rows, &near, options.m)?;
        links.set(row, level, &chosen);
        for other in chosen {
            link_back(links, rows, other, row, level)?;
        }
        start = near;
    }
    if level > top {
        links.entry = row;
    }
    Ok(())
}

/// Adds a link; where there is no more room, those stay that lead into different directions.
fn link_back(
    links: &mut Links,
    rows: &mut Rows<'_>,
    from: u32,
    to: u32,
    level: u32,
) -> Result<(), VectorError> {
    let mut list = links.of(from, level).to_vec();
    list.push(to);
    if list.len() > links.most(level) {
        let target = rows.row(from)?;
        let near = list.iter().map(|row| {
            let distance = rows.distance(&target, *row)?;
            Ok(Near {
                distance,
                row: *row,
            })
        });
        let mut near = near.collect::<Result<Vec<_>, VectorError>>()?;
        near.sort_unstable();
        list = spread(rows, &near, links.most(level))?;
    }
    links.set(from, level, &list);
    Ok(())
}

/// Of candidates, the nearest first, those that are nearer to the center than to any chosen before,
/// and then the nearest of the others: algorithm 4 of the paper.
fn spread(rows: &mut Rows<'_>, near: &[Near], most: usize) -> Result<Vec<u32>, VectorError> {
    let mut chosen: Vec<u32> = Vec::with_capacity(most);
    let mut others = Vec::new();
    for candidate in near {
        if chosen.len() == most {
            break;
        }
        let target = rows.row(candidate.row)?;
        let mut apart = true;
        for known in &chosen {
            if rows.distance(&target, *known)? < candidate.distance {
                apart = false;
                break;
            }
        }
        match apart {
            true => chosen.push(candidate.row),
            false => others.push(candidate.row),
        }
    }
    let room = most - chosen.len();
    chosen.extend(others.into_iter().take(room));
    Ok(chosen)
}
