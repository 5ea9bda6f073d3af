//! Compiles descriptor sets for tests, without protoc.

use prost::Message;

/// Compiles `source` as the package `shop.v1` and returns the encoded descriptor set, imports included.
pub(crate) fn shop_descriptor_set(source: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let source = format!(
        "syntax = \"proto3\"; package shop.v1; \
        import \"google/longrunning/operations.proto\"; import \"google/protobuf/any.proto\"; {source}"
    );
    std::fs::write(directory.path().join("shop.proto"), source).unwrap();
    let vendored = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let set = protox::compile(["shop.proto"], [directory.path(), vendored.as_ref()]);
    set.unwrap().encode_to_vec()
}

/// A message with fields that JSON encodes specially: `int64` and `Any`.
pub(crate) const ITEM_MESSAGE: &str =
    "message Item { string title = 1; int64 cents = 2; google.protobuf.Any extra = 3; }";
/// A service whose reflection exposes the message.
pub(crate) const SHOP_SERVICE: &str =
    "service Shop { rpc Buy(Item) returns (google.longrunning.Operation); }";
