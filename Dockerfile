# docker build -t frugal .
# docker run --rm -it -v "$PWD:/work" -v frugal-cache:/cache frugal tune --data train.tsv --out runs/first
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist --package frugal-cli \
    && strip target/dist/frugal

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/dist/frugal /usr/local/bin/frugal
# Models are kept in the cache; data and run folders are where the container works.
ENV FRUGAL_CACHE=/cache/frugal HF_HOME=/cache/huggingface
RUN mkdir --mode=777 /cache
VOLUME /cache
WORKDIR /work
# Signals go to the program, so that `docker stop` ends a run with a checkpoint.
STOPSIGNAL SIGTERM
ENTRYPOINT ["frugal"]
