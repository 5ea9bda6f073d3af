# Image with one binary, without a shell and without root:
#
#     docker build -t longrunning .
#     docker run --rm -p 8470:8470 -p 8472:8472 longrunning
#
# It uses no BuildKit feature, so podman and buildah can build it too.
# `.ci/container` tests the image, and reads the names of the base images below.

FROM docker.io/library/rust:1.95-slim-bookworm AS build
WORKDIR /src

# Dependencies are a separate layer, which is rebuilt only if the manifest or the
# lock file changes. They are compiled for an empty package, which is then cleaned:
# cargo compares mtimes and could otherwise take its artifacts for current. A cache
# mount would be shorter, but it stays on one machine, whereas `--cache-to` shares
# a layer with other CI machines; and checkouts of different age that share a cache
# mount would get stale artifacts.
#
# The manifest must not name benches, examples and tests that are not in the image,
# so their sections are removed; the real build below uses this manifest.
COPY Cargo.toml Cargo.lock ./
RUN awk '/^\[/ { skip = /^\[\[(bench|example|test)\]\]/ } !skip' Cargo.toml >Cargo.kept \
    && mv Cargo.kept Cargo.toml \
    && mkdir src \
    && echo '//! Empty.' >src/lib.rs \
    && printf '%s\n' '//! Empty.' 'fn main() {}' | tee build.rs >src/main.rs \
    && cargo build --release --locked \
    && cargo clean --release --locked --offline --package longrunning \
    && rm -r build.rs src

COPY build.rs ./
COPY proto proto
COPY src src
RUN cargo build --release --locked --offline

# glibc of the same Debian release as in the build, and libgcc. A static musl binary
# in an empty image would save some 20 MB, but its allocator has one lock for all
# threads. A static glibc cannot resolve host names.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="longrunning" \
    org.opencontainers.image.description="Server for google.longrunning.Operations (AIP-151)" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/target/release/longrunning /longrunning

# The default of the program, loopback, is not reachable from outside.
ENV LONGRUNNING_LISTEN=0.0.0.0:8470 \
    LONGRUNNING_ADMIN_LISTEN=0.0.0.0:8472
EXPOSE 8470 8472

# Numeric, so that Kubernetes can verify runAsNonRoot.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 \
    CMD ["/longrunning", "healthcheck"]
ENTRYPOINT ["/longrunning"]
CMD ["serve"]
