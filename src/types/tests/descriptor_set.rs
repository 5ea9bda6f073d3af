//! Tests of accepted and rejected descriptor sets.

use std::io::Write;

use super::compile_protos;
use crate::types::{DescriptorSet, TypeRegistry, TypeSource};

const ITEM_PROTO: &str = r#"syntax = "proto3"; package shop; message Item { int64 cents = 1; }"#;

fn descriptor_set(origin: &str, files: &[(&str, &str)]) -> DescriptorSet {
    DescriptorSet::decode(origin.to_owned(), &compile_protos(files)).unwrap()
}

/// Returns the error for these sets.
fn rejection(types: &TypeRegistry, sets: Vec<DescriptorSet>) -> String {
    types
        .replace_source(TypeSource::Files, sets)
        .unwrap_err()
        .to_string()
}

// Rules: TYPES-1
#[test]
fn loading_descriptor_set_adds_and_counts_its_types() {
    let types = TypeRegistry::built_in();
    let loaded = types.replace_source(
        TypeSource::Files,
        vec![descriptor_set("a", &[("shop.proto", ITEM_PROTO)])],
    );
    let loaded = loaded.unwrap();
    assert_eq!((loaded.file_count, loaded.message_count), (1, 1));
    assert!(types.descriptor("shop.Item").is_some());
}

#[test]
fn registry_clones_share_added_types() {
    let types = TypeRegistry::built_in();
    let clone = types.clone();
    types
        .add_descriptor_set(&compile_protos(&[("shop.proto", ITEM_PROTO)]))
        .unwrap();
    assert!(clone.descriptor("shop.Item").is_some());
    assert!(TypeRegistry::built_in().descriptor("shop.Item").is_none());
}

// Rules: TYPES-1
#[test]
fn duplicate_file_with_other_comments_is_accepted() {
    let types = TypeRegistry::built_in();
    let commented = ITEM_PROTO.replace("message", "/* An item. */ message");
    let sets = vec![
        descriptor_set("a", &[("shop.proto", ITEM_PROTO)]),
        descriptor_set("b", &[("shop.proto", ITEM_PROTO)]),
        descriptor_set("c", &[("shop.proto", &commented)]),
    ];
    assert_eq!(
        types
            .replace_source(TypeSource::Files, sets)
            .unwrap()
            .file_count,
        1
    );
}

// Rules: TYPES-1
#[test]
fn built_in_files_override_other_versions() {
    let types = TypeRegistry::built_in();
    let other = r#"syntax = "proto3"; package google.rpc; message Status { string other = 9; }"#;
    types
        .replace_source(
            TypeSource::Files,
            vec![descriptor_set("a", &[("google/rpc/status.proto", other)])],
        )
        .unwrap();
    let status = types.descriptor("google.rpc.Status").unwrap();
    assert!(status.get_field_by_name("code").is_some());
}

// Google's Python package has operations.proto as operations_proto.proto.
// Rules: TYPES-1
#[test]
fn built_in_file_under_other_path_resolves_to_built_in() {
    let types = TypeRegistry::built_in();
    let copy = r#"syntax = "proto3"; package google.rpc; message Status { int32 code = 1; }"#;
    let user = r#"syntax = "proto3"; package shop; import "google/rpc/status_proto.proto";
        message Sale { google.rpc.Status status = 1; }"#;
    let sets = vec![descriptor_set(
        "a",
        &[
            ("google/rpc/status_proto.proto", copy),
            ("sale.proto", user),
        ],
    )];
    types.replace_source(TypeSource::Files, sets).unwrap();
    let status = types.descriptor("shop.Sale").unwrap();
    let status = status.get_field_by_name("status").unwrap().kind();
    let status = status.as_message().unwrap().clone();
    assert!(status.get_field_by_name("details").is_some());
}

// Rules: TYPES-1
#[test]
fn descriptor_set_may_import_file_of_other_set() {
    let user =
        r#"syntax = "proto3"; package shop; import "shop.proto"; message Cart { Item item = 1; }"#;
    let full = compile_protos(&[("shop.proto", ITEM_PROTO), ("cart.proto", user)]);
    let cart_only = super::single_file_set(&full, "cart.proto");
    let cart = || DescriptorSet::decode("cart.binpb".to_owned(), &cart_only).unwrap();
    let types = TypeRegistry::built_in();
    let alone = rejection(&types, vec![cart()]);
    for part in [
        "cart.proto",
        "cart.binpb",
        "imports \"shop.proto\"",
        "--include_imports",
    ] {
        assert!(alone.contains(part), "{alone}");
    }
    let sets = vec![cart(), descriptor_set("a", &[("shop.proto", ITEM_PROTO)])];
    assert_eq!(
        types
            .replace_source(TypeSource::Files, sets)
            .unwrap()
            .file_count,
        2
    );
}

// Rules: TYPES-2
#[test]
fn conflicting_sets_are_rejected_and_previous_sets_stay() {
    let types = TypeRegistry::built_in();
    types
        .replace_source(
            TypeSource::Files,
            vec![descriptor_set("a", &[("shop.proto", ITEM_PROTO)])],
        )
        .unwrap();
    let other = ITEM_PROTO.replace("int64", "string");
    let files = |name| {
        vec![
            descriptor_set("one.binpb", &[("shop.proto", ITEM_PROTO)]),
            descriptor_set("two.binpb", &[(name, &other)]),
        ]
    };
    let same_name = rejection(&types, files("shop.proto"));
    assert!(
        same_name.contains("one.binpb") && same_name.contains("two.binpb"),
        "{same_name}"
    );
    let same_type = rejection(&types, files("other.proto"));
    for part in [
        "other.proto",
        "two.binpb",
        "'shop.Item' is already defined in file 'shop.proto'",
    ] {
        assert!(same_type.contains(part), "{same_type}");
    }
    assert!(types.descriptor("shop.Item").is_some());
}

// Rules: TYPES-4
#[test]
fn conflicting_reflection_types_are_dropped_for_files() {
    let sale = |item: &str| {
        format!(
            r#"syntax = "proto3"; package shop; import "shop.proto"; message Sale {{ {item} item = 1; }}"#
        )
    };
    let renamed = ITEM_PROTO.replace("Item", "Thing");
    let files = |item: &str| vec![descriptor_set("shop.binpb", &[("shop.proto", item)])];
    let reflection_sets = |item: &str, name: &str| {
        let files = [("shop.proto", item), ("sale.proto", &*sale(name))];
        vec![descriptor_set("upstream", &files)]
    };
    let types = TypeRegistry::built_in();
    types
        .replace_source(TypeSource::Files, files(ITEM_PROTO))
        .unwrap();
    let loaded = types.replace_source(TypeSource::Reflection, reflection_sets(ITEM_PROTO, "Item"));
    assert_eq!(
        loaded.unwrap().file_count,
        1,
        "shop.proto is already in the files"
    );

    let loaded = types
        .replace_source(TypeSource::Files, files(&renamed))
        .unwrap();
    assert_eq!(loaded.file_count, 1);
    let reason = loaded.dropped_reflection.unwrap().to_string();
    assert!(
        reason.contains("sale.proto") && reason.contains("upstream"),
        "{reason}"
    );
    assert!(types.descriptor("shop.Thing").is_some());
    assert!(types.descriptor("shop.Sale").is_none());

    // Reflection is rejected as long as the upstream has the old types.
    let result = types.replace_source(TypeSource::Reflection, reflection_sets(ITEM_PROTO, "Item"));
    assert!(result.is_err());
    assert!(types.descriptor("shop.Thing").is_some());
    let loaded = types.replace_source(TypeSource::Reflection, reflection_sets(&renamed, "Thing"));
    assert_eq!(loaded.unwrap().file_count, 1);
    assert!(types.descriptor("shop.Sale").is_some());
    // Files that do not conflict with reflection do not affect it.
    let loaded = types
        .replace_source(TypeSource::Files, files(&renamed))
        .unwrap();
    assert!(loaded.dropped_reflection.is_none());
    assert!(types.descriptor("shop.Sale").is_some());
}

// Rules: TYPES-2
#[test]
fn invalid_descriptor_set_is_rejected_with_compile_hint() {
    let missing = DescriptorSet::read("/nowhere/x.binpb".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/x.binpb"));
    for (bytes, problem) in [
        (&b""[..], "it is empty"),
        (ITEM_PROTO.as_bytes(), "a .proto file must be compiled"),
        (b"{\"file\": []}", "it is text"),
        (b"\xff\xff\xff", "its bytes cannot be decoded"),
        (b"\x10\x01", "it contains no files"),
        (b"\x0a\x02\xff\xff", "its bytes cannot be decoded"),
        (b"\x0a\x00", "its bytes cannot be decoded"),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let path = file.path();
        let error = DescriptorSet::read(path).unwrap_err().to_string();
        for part in [
            problem,
            path.to_str().unwrap(),
            "--descriptor_set_out",
            "buf build -o",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}

// Rules: TYPES-1
#[test]
fn edition_file_is_read_as_proto2() {
    let mut file = prost_types::FileDescriptorProto::default();
    file.clone_from(&super::find_file(
        &compile_protos(&[("shop.proto", ITEM_PROTO)]),
        "shop.proto",
    ));
    file.syntax = Some("editions".to_owned());
    let set = prost_types::FileDescriptorSet { file: vec![file] };
    let types = TypeRegistry::built_in();
    types
        .add_descriptor_set(&prost::Message::encode_to_vec(&set))
        .unwrap();
    let zero = types
        .pack("shop.Item", &serde_json::json!({ "cents": 0 }))
        .unwrap();
    assert_eq!(types.any_to_json(&zero)["cents"], "0", "the field is set");
}
