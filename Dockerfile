# The image of the sidecar: one binary, no shell, no root.
#
#     docker build -t longrunning .
#     docker run --rm -p 8470:8470 -p 8472:8472 longrunning
#
# It needs nothing of BuildKit, so podman and buildah build it as well.
# `.ci/container` proves it; it reads the names of the base images below.

FROM docker.io/library/rust:1.95-slim-bookworm AS build
WORKDIR /src

# The dependencies are a layer of their own, which only the manifest and the
# lock file can make stale. They are compiled for a package without a word in
# it, whose traces then go, or cargo, which looks at times, could take them for
# the real thing. A cache mount would be shorter; but it stays on the machine
# that built, where a layer also travels through `--cache-to` to the next CI
# machine, and clones of different ages that share one get old code for new.
#
# Benches, examples and tests named in the manifest would have to be there, so
# their sections go; the real build below goes on with this manifest.
COPY Cargo.toml Cargo.lock ./
RUN awk '/^\[/ { skip = /^\[\[(bench|example|test)\]\]/ } !skip' Cargo.toml >Cargo.kept \
    && mv Cargo.kept Cargo.toml \
    && mkdir src \
    && echo '//! Nothing yet.' >src/lib.rs \
    && printf '%s\n' '//! Nothing yet.' 'fn main() {}' | tee build.rs >src/main.rs \
    && cargo build --release --locked \
    && cargo clean --release --locked --offline --package longrunning \
    && rm -r build.rs src

COPY build.rs ./
COPY proto proto
COPY src src
RUN cargo build --release --locked --offline

# glibc of the same Debian that it was linked with, and libgcc. A static binary
# on musl in an empty image would save some 20 MB, and pay for it with every
# allocation: musl's allocator has one lock for all threads. A static glibc
# cannot look up host names.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="longrunning" \
    org.opencontainers.image.description="The missing server for google.longrunning.Operations (AIP-151)" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/target/release/longrunning /longrunning

# On loopback, the program's own default, nobody outside could connect.
ENV LONGRUNNING_LISTEN=0.0.0.0:8470 \
    LONGRUNNING_ADMIN_LISTEN=0.0.0.0:8472
EXPOSE 8470 8472

# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 \
    CMD ["/longrunning", "healthcheck"]
ENTRYPOINT ["/longrunning"]
CMD ["serve"]
