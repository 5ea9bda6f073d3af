//! Google's own Rust client, `google-cloud-longrunning`, follows operations of a
//! server at `ENDPOINT`; `rest.sh` has made them. It speaks HTTP/JSON only. One
//! line for each check; exit code 1 if one failed.

use std::{env, error::Error, process::ExitCode};

use google_cloud_auth::credentials::anonymous;
use google_cloud_gax::{error::rpc::Code, paginator::ItemPaginator};
use google_cloud_longrunning::client::Operations;

type Checked = Result<String, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Wanted even where there is no TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = match connect().await {
        Ok(client) => client,
        Err(error) => {
            eprintln!("no client: {error}");
            return ExitCode::FAILURE;
        }
    };
    let checks = [
        (
            "get_operation unpacks a done operation",
            done(&client).await,
        ),
        (
            "metadata comes with enums as integers",
            numbers(&client).await,
        ),
        (
            "list_operations goes from page to page",
            pages(&client).await,
        ),
        (
            "cancel_operation ends a waiting one with code 1",
            cancel(&client).await,
        ),
        (
            "delete_operation makes it not found, with the reason",
            delete(&client).await,
        ),
        (
            "a bad page token is an error with its canonical code",
            refused(&client).await,
        ),
        (
            "an id with a colon or a percent sign is only an error",
            odd(&client).await,
        ),
    ];
    let mut failed = 0;
    for (claim, checked) in &checks {
        match checked {
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

fn ensure(holds: bool, what: impl std::fmt::Debug) -> Result<(), Box<dyn Error>> {
    if holds {
        Ok(())
    } else {
        Err(format!("{what:?}").into())
    }
}

async fn done(client: &Operations) -> Checked {
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

async fn numbers(client: &Operations) -> Checked {
    let operation = client
        .get_operation()
        .set_name("operations/waiting")
        .send()
        .await?;
    let metadata = serde_json::to_value(operation.metadata.ok_or("no metadata")?)?;
    ensure(metadata["state"] == 1, &metadata)?;
    Ok(String::new())
}

async fn pages(client: &Operations) -> Checked {
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

async fn cancel(client: &Operations) -> Checked {
    let name = "operations/waiting";
    client.cancel_operation().set_name(name).send().await?;
    let operation = client.get_operation().set_name(name).send().await?;
    let error = operation.error().ok_or("no error")?;
    ensure(operation.done && error.code == 1, error)?;
    Ok(error.message.clone())
}

async fn delete(client: &Operations) -> Checked {
    let name = "operations/other";
    client.delete_operation().set_name(name).send().await?;
    let again = client.delete_operation().set_name(name).send().await;
    let error = again.err().ok_or("it is still there")?;
    let status = error.status().ok_or("no status")?;
    ensure(status.code == Code::NotFound, status)?;
    let details = format!("{:?}", status.details);
    ensure(details.contains("OPERATION_NOT_FOUND"), &details)?;
    Ok(String::new())
}

async fn refused(client: &Operations) -> Checked {
    let list = client
        .list_operations()
        .set_name("operations")
        .set_page_token("x");
    let error = list.send().await.err().ok_or("it was taken")?;
    let status = error.status().ok_or("no status")?;
    ensure(status.code == Code::InvalidArgument, status)?;
    Ok(status.message.clone())
}

async fn odd(client: &Operations) -> Checked {
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
