//! Which descriptor sets are taken, and what is said of those that are not.

use std::io::Write;

use super::compile;
use crate::types::{DescriptorSet, Layer, Types};

const ITEM: &str = r#"syntax = "proto3"; package shop; message Item { int64 cents = 1; }"#;

fn set(origin: &str, files: &[(&str, &str)]) -> DescriptorSet {
    DescriptorSet::decode(origin.to_owned(), &compile(files)).unwrap()
}

/// What is said of these sets.
fn refusal(types: &Types, sets: Vec<DescriptorSet>) -> String {
    types.replace(Layer::Files, sets).unwrap_err().to_string()
}

#[test]
fn a_set_brings_its_types_and_counts_them() {
    let types = Types::built_in();
    let loaded = types.replace(Layer::Files, vec![set("a", &[("shop.proto", ITEM)])]);
    let loaded = loaded.unwrap();
    assert_eq!((loaded.files, loaded.messages), (1, 1));
    assert!(types.descriptor("shop.Item").is_some());
}

#[test]
fn clones_know_what_is_added_later() {
    let types = Types::built_in();
    let clone = types.clone();
    types
        .add_descriptor_set(&compile(&[("shop.proto", ITEM)]))
        .unwrap();
    assert!(clone.descriptor("shop.Item").is_some());
    assert!(Types::built_in().descriptor("shop.Item").is_none());
}

#[test]
fn a_set_may_come_twice_and_with_other_comments() {
    let types = Types::built_in();
    let commented = ITEM.replace("message", "/* An item. */ message");
    let sets = vec![
        set("a", &[("shop.proto", ITEM)]),
        set("b", &[("shop.proto", ITEM)]),
        set("c", &[("shop.proto", &commented)]),
    ];
    assert_eq!(types.replace(Layer::Files, sets).unwrap().files, 1);
}

#[test]
fn built_in_files_win_over_other_versions_of_them() {
    let types = Types::built_in();
    let other = r#"syntax = "proto3"; package google.rpc; message Status { string other = 9; }"#;
    types
        .replace(
            Layer::Files,
            vec![set("a", &[("google/rpc/status.proto", other)])],
        )
        .unwrap();
    let status = types.descriptor("google.rpc.Status").unwrap();
    assert!(status.get_field_by_name("code").is_some());
}

// Google's Python package has operations.proto as operations_proto.proto.
#[test]
fn a_built_in_file_under_another_path_is_the_built_in_one() {
    let types = Types::built_in();
    let twin = r#"syntax = "proto3"; package google.rpc; message Status { int32 code = 1; }"#;
    let user = r#"syntax = "proto3"; package shop; import "google/rpc/status_proto.proto";
        message Sale { google.rpc.Status status = 1; }"#;
    let sets = vec![set(
        "a",
        &[
            ("google/rpc/status_proto.proto", twin),
            ("sale.proto", user),
        ],
    )];
    types.replace(Layer::Files, sets).unwrap();
    let status = types.descriptor("shop.Sale").unwrap();
    let status = status.get_field_by_name("status").unwrap().kind();
    let status = status.as_message().unwrap().clone();
    assert!(status.get_field_by_name("details").is_some());
}

#[test]
fn a_set_may_import_what_another_set_has() {
    let user =
        r#"syntax = "proto3"; package shop; import "shop.proto"; message Cart { Item item = 1; }"#;
    let full = compile(&[("shop.proto", ITEM), ("cart.proto", user)]);
    let cart_only = super::only(&full, "cart.proto");
    let cart = || DescriptorSet::decode("cart.binpb".to_owned(), &cart_only).unwrap();
    let types = Types::built_in();
    let alone = refusal(&types, vec![cart()]);
    for part in [
        "cart.proto",
        "cart.binpb",
        "imports \"shop.proto\"",
        "--include_imports",
    ] {
        assert!(alone.contains(part), "{alone}");
    }
    let sets = vec![cart(), set("a", &[("shop.proto", ITEM)])];
    assert_eq!(types.replace(Layer::Files, sets).unwrap().files, 2);
}

#[test]
fn sets_that_contradict_each_other_are_refused_with_both_names_and_the_old_ones_stay() {
    let types = Types::built_in();
    types
        .replace(Layer::Files, vec![set("a", &[("shop.proto", ITEM)])])
        .unwrap();
    let other = ITEM.replace("int64", "string");
    let files = |name| {
        vec![
            set("one.binpb", &[("shop.proto", ITEM)]),
            set("two.binpb", &[(name, &other)]),
        ]
    };
    let same_name = refusal(&types, files("shop.proto"));
    assert!(
        same_name.contains("one.binpb") && same_name.contains("two.binpb"),
        "{same_name}"
    );
    let same_type = refusal(&types, files("other.proto"));
    for part in [
        "other.proto",
        "two.binpb",
        "'shop.Item' is already defined in file 'shop.proto'",
    ] {
        assert!(same_type.contains(part), "{same_type}");
    }
    assert!(types.descriptor("shop.Item").is_some());
}

#[test]
fn what_reflection_told_gives_way_to_files_that_it_does_not_fit() {
    let sale = |item: &str| {
        format!(
            r#"syntax = "proto3"; package shop; import "shop.proto"; message Sale {{ {item} item = 1; }}"#
        )
    };
    let renamed = ITEM.replace("Item", "Thing");
    let files = |item: &str| vec![set("shop.binpb", &[("shop.proto", item)])];
    let told = |item: &str, name: &str| {
        let files = [("shop.proto", item), ("sale.proto", &*sale(name))];
        vec![set("upstream", &files)]
    };
    let types = Types::built_in();
    types.replace(Layer::Files, files(ITEM)).unwrap();
    let loaded = types.replace(Layer::Reflection, told(ITEM, "Item"));
    assert_eq!(loaded.unwrap().files, 1, "the other one is in the file");

    let loaded = types.replace(Layer::Files, files(&renamed)).unwrap();
    assert_eq!(loaded.files, 1);
    let why = loaded.left_out.unwrap().to_string();
    assert!(
        why.contains("sale.proto") && why.contains("upstream"),
        "{why}"
    );
    assert!(types.descriptor("shop.Thing").is_some());
    assert!(types.descriptor("shop.Sale").is_none());

    // As long as the other server is the old one, it is refused, and no more.
    let refused = types.replace(Layer::Reflection, told(ITEM, "Item"));
    assert!(refused.is_err());
    assert!(types.descriptor("shop.Thing").is_some());
    let loaded = types.replace(Layer::Reflection, told(&renamed, "Thing"));
    assert_eq!(loaded.unwrap().files, 1);
    assert!(types.descriptor("shop.Sale").is_some());
    // Files that fit leave it alone.
    let loaded = types.replace(Layer::Files, files(&renamed)).unwrap();
    assert!(loaded.left_out.is_none());
    assert!(types.descriptor("shop.Sale").is_some());
}

#[test]
fn what_is_no_set_is_refused_with_how_to_make_one() {
    let missing = DescriptorSet::read("/nowhere/x.binpb".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/x.binpb"));
    for (bytes, problem) in [
        (&b""[..], "it is empty"),
        (ITEM.as_bytes(), "a .proto file has to be compiled"),
        (b"{\"file\": []}", "it is text"),
        (b"\xff\xff\xff", "its bytes are something else"),
        (b"\x10\x01", "there is no file in it"),
        (b"\x0a\x02\xff\xff", "its bytes are something else"),
        (b"\x0a\x00", "its bytes are something else"),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let path = file.path();
        let refused = DescriptorSet::read(path).unwrap_err().to_string();
        for part in [
            problem,
            path.to_str().unwrap(),
            "--descriptor_set_out",
            "buf build -o",
        ] {
            assert!(refused.contains(part), "{refused}");
        }
    }
}

#[test]
fn a_file_of_an_edition_is_read_as_proto2() {
    let mut file = prost_types::FileDescriptorProto::default();
    file.clone_from(&super::file(
        &compile(&[("shop.proto", ITEM)]),
        "shop.proto",
    ));
    file.syntax = Some("editions".to_owned());
    let set = prost_types::FileDescriptorSet { file: vec![file] };
    let types = Types::built_in();
    types
        .add_descriptor_set(&prost::Message::encode_to_vec(&set))
        .unwrap();
    let zero = types
        .pack("shop.Item", &serde_json::json!({ "cents": 0 }))
        .unwrap();
    assert_eq!(types.any(&zero)["cents"], "0", "it is set");
}
