//! Messages and clients generated from `proto/`, and their descriptor set.

#[expect(
    missing_docs,
    reason = "the documentation is in the vendored .proto files"
)]
pub mod google {
    //! Vendored protos of Google.

    pub mod api {
        //! `google.api`: the annotations of operations.proto.
        tonic::include_proto!("google.api");
    }
    pub mod longrunning {
        //! `google.longrunning`: Operation and the client of the Operations service.
        tonic::include_proto!("google.longrunning");
    }
    pub mod rpc {
        //! `google.rpc`: Status, Code and the error details.
        tonic::include_proto!("google.rpc");
    }
}

pub mod longrunning {
    //! The protos of this project.

    pub mod v1 {
        //! `longrunning.v1`: metadata, progress and the watch stream.
        tonic::include_proto!("longrunning.v1");
    }
    pub mod demo {
        //! The API of the demo.
        pub mod v1 {
            //! `longrunning.demo.v1`: Checksums.
            tonic::include_proto!("longrunning.demo.v1");
        }
    }
}

/// The encoded `google.protobuf.FileDescriptorSet` of these services and types, for
/// gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
