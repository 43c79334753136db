# syntax=docker/dockerfile:1
#     docker build -t ecs-torrent .
#     docker run -d --name torrents -v torrents:/data -p 6881:6881 -p 6881:6881/udp ecs-torrent
#     docker exec torrents ecs-torrent list
# The API listens only on the container's loopback address; use it from inside, as above.
FROM rust:1.95-slim-trixie AS build
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked --bin ecs-torrent \
    && install -s target/release/ecs-torrent /usr/local/bin/ecs-torrent

FROM debian:trixie-slim
RUN useradd --system --uid 10001 --home-dir /data --create-home torrent
COPY --from=build /usr/local/bin/ecs-torrent /usr/local/bin/ecs-torrent
USER torrent
# The state folder is /data/.ecs_torrent, where the client commands look for it too.
WORKDIR /data
VOLUME /data
EXPOSE 6881/tcp 6881/udp
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=30s CMD ["ecs-torrent", "list"]
ENTRYPOINT ["ecs-torrent"]
CMD ["daemon", "--download-dir", "/data/downloads"]
