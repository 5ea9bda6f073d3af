# The commands of CONTRIBUTING.md. `just` lists them.

_default:
    @just --list

# Build the program
build:
    cargo build --release

# Run all tests
test:
    cargo test

# Run the unit tests below a module, such as store::
unit path="":
    cargo test --all-features --lib {{path}}

# Run the integration tests below a folder, such as grpc::wait
it path="":
    cargo test --all-features --test it -- {{path}}

# Run other people's clients against the release build
clients:
    tests/clients/run

# Format
fmt:
    cargo fmt --all

# Lint everything
lint:
    cargo clippy --locked --all-targets --all-features -- -D warnings

# Lint the library with one feature alone
feature name:
    cargo clippy --locked --lib --no-default-features --features {{name}} -- -D warnings

# Write docs/rules.md
rules:
    .ci/rules

# Check that imports run one way
layers:
    .ci/layers

# Build the documentation
doc:
    cargo doc --no-deps --all-features

# Check licences and versions of the dependencies
deny:
    cargo deny check licenses bans sources

# Count the instructions of the hot paths
instructions:
    benches/instructions/run

# Run one bench
bench name:
    cargo bench --bench {{name}}

# Run what CI runs
ci:
    .ci/run

# Run what CI runs, and what takes too long for it
ci-long:
    .ci/run long
