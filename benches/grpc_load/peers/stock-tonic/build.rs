fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(
        ["google/longrunning/operations.proto"],
        ["../../../../proto"],
    )?;
    tonic_prost_build::configure()
        .build_client(false)
        .compile_fds(descriptors)?;
    Ok(())
}
