//! Checks `google-cloud-longrunning`, Google's Rust client, which uses HTTP/JSON, against
//! the server at `ENDPOINT`. `rest.sh` creates the operations. Prints one line for each
//! check and exits with 1 if one failed.

use std::{env, error::Error, process::ExitCode};

use google_cloud_auth::credentials::anonymous;
use google_cloud_gax::{error::rpc::Code, paginator::ItemPaginator};
use google_cloud_longrunning::client::Operations;

/// Details to print, or why the check failed.
type CheckResult = Result<String, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // The client requires a default provider even without TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = match connect().await {
        Ok(client) => client,
        Err(error) => {
            eprintln!("cannot create the client: {error}");
            return ExitCode::FAILURE;
        }
    };
    let checks = [
        (
            "get_operation returns a done operation with its response",
            get_done(&client).await,
        ),
        (
            "metadata has enums as integers",
            enum_encoding(&client).await,
        ),
        (
            "list_operations follows page tokens",
            list_pages(&client).await,
        ),
        (
            "cancel_operation completes a pending operation with CANCELLED",
            cancel(&client).await,
        ),
        (
            "a second delete_operation is NOT_FOUND with a reason",
            delete(&client).await,
        ),
        (
            "an invalid page token is INVALID_ARGUMENT",
            invalid_page_token(&client).await,
        ),
        (
            "an id with a colon is NOT_FOUND, one with a percent sign INVALID_ARGUMENT",
            unusual_ids(&client).await,
        ),
    ];
    let mut failed = 0;
    for (claim, result) in &checks {
        match result {
            Ok(detail) if detail.is_empty() => println!("  ok      {claim}"),
            Ok(detail) => println!("  ok      {claim}: {detail}"),
            Err(error) => {
                failed += 1;
                println!("  FAILED  {claim}: {error}");
            }
        }
    }
    println!(
        "\ngoogle-cloud-longrunning checks: {} ok, {failed} failed",
        checks.len() - failed
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn connect() -> Result<Operations, Box<dyn Error>> {
    let client = Operations::builder()
        .with_endpoint(env::var("ENDPOINT")?)
        .with_credentials(anonymous::Builder::new().build())
        .build();
    Ok(client.await?)
}

/// Returns an error that shows `actual` unless `condition` holds.
fn ensure(condition: bool, actual: impl std::fmt::Debug) -> Result<(), Box<dyn Error>> {
    if condition {
        Ok(())
    } else {
        Err(format!("{actual:?}").into())
    }
}

async fn get_done(client: &Operations) -> CheckResult {
    let operation = client
        .get_operation()
        .set_name("operations/done")
        .send()
        .await?;
    ensure(
        operation.done && operation.name == "operations/done",
        &operation,
    )?;
    let response = operation.response().ok_or("no response")?;
    let url = response.type_url().unwrap_or_default();
    ensure(url == "type.googleapis.com/google.protobuf.Struct", url)?;
    let json = serde_json::to_value(response)?;
    ensure(json["value"]["answer"] == 42.0, &json)?;
    Ok(json.to_string())
}

async fn enum_encoding(client: &Operations) -> CheckResult {
    let operation = client
        .get_operation()
        .set_name("operations/waiting")
        .send()
        .await?;
    let metadata = serde_json::to_value(operation.metadata.ok_or("no metadata")?)?;
    // PENDING
    ensure(metadata["state"] == 1, &metadata)?;
    Ok(String::new())
}

async fn list_pages(client: &Operations) -> CheckResult {
    let mut list = client
        .list_operations()
        .set_name("operations")
        .set_page_size(1)
        .by_item();
    let mut names = Vec::new();
    while let Some(operation) = list.next().await {
        names.push(operation?.name);
    }
    let expected = ["operations/other", "operations/waiting", "operations/done"];
    ensure(names == expected, &names)?;
    Ok(names.join(" "))
}

async fn cancel(client: &Operations) -> CheckResult {
    let name = "operations/waiting";
    client.cancel_operation().set_name(name).send().await?;
    let operation = client.get_operation().set_name(name).send().await?;
    let error = operation.error().ok_or("no error")?;
    ensure(
        operation.done && Code::from(error.code) == Code::Cancelled,
        error,
    )?;
    Ok(error.message.clone())
}

async fn delete(client: &Operations) -> CheckResult {
    let name = "operations/other";
    client.delete_operation().set_name(name).send().await?;
    let again = client.delete_operation().set_name(name).send().await;
    let error = again.err().ok_or("the operation still exists")?;
    let status = error.status().ok_or("no status")?;
    ensure(status.code == Code::NotFound, status)?;
    let details = format!("{:?}", status.details);
    ensure(details.contains("OPERATION_NOT_FOUND"), &details)?;
    Ok(String::new())
}

async fn invalid_page_token(client: &Operations) -> CheckResult {
    let list = client
        .list_operations()
        .set_name("operations")
        .set_page_token("x");
    let error = list
        .send()
        .await
        .err()
        .ok_or("the page token was accepted")?;
    let status = error.status().ok_or("no status")?;
    ensure(status.code == Code::InvalidArgument, status)?;
    Ok(status.message.clone())
}

async fn unusual_ids(client: &Operations) -> CheckResult {
    for (name, code) in [
        ("operations/a:b", Code::NotFound),
        ("operations/50%", Code::InvalidArgument),
    ] {
        let error = client.get_operation().set_name(name).send().await.err();
        let status = error.as_ref().and_then(|error| error.status());
        ensure(
            status.is_some_and(|status| status.code == code),
            (name, &error),
        )?;
    }
    Ok(String::new())
}
