//! The generated messages and clients, as `proto/` declares them, and the
//! descriptor set for reflection. No code of ours lives here.

#[expect(
    missing_docs,
    reason = "the documentation is in the vendored .proto files"
)]
pub mod google {
    //! The vendored protos of Google.

    pub mod api {
        //! `google.api`: the annotations that operations.proto carries.
        tonic::include_proto!("google.api");
    }
    pub mod longrunning {
        //! `google.longrunning`: Operation, and the client of its service.
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
        //! The API that the demo serves.
        pub mod v1 {
            //! `longrunning.demo.v1`: Checksums.
            tonic::include_proto!("longrunning.demo.v1");
        }
    }
}

/// The `google.protobuf.FileDescriptorSet` of every service and type above,
/// encoded; what gRPC reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
