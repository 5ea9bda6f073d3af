//! `longrunning.v1.OperationAdmin`: deleted operations that are still queued or running.

use longrunning::{
    AdminService, OperationAdminServer, State, admin_server,
    proto::longrunning::v1::{
        CancelOperationRequest, CreateOperationRequest, ListOperationsRequest,
        ListOperationsResponse, directive::Kind, finish_operation_request::Outcome,
        operation_admin_client::OperationAdminClient,
    },
};
use tonic::Code;

use crate::support::{
    decode_metadata,
    error_details::expect_status_error,
    harness::{Harness, queued_request},
    string_value,
};

type AdminClient = OperationAdminClient<OperationAdminServer<AdminService>>;

fn admin_client(harness: &Harness) -> AdminClient {
    OperationAdminClient::new(admin_server(&harness.operations))
}

async fn list(
    client: &mut AdminClient,
    filter: &str,
    show_deleted: bool,
) -> ListOperationsResponse {
    let request = ListOperationsRequest {
        filter: filter.to_owned(),
        show_deleted,
        ..ListOperationsRequest::default()
    };
    client.list_operations(request).await.unwrap().into_inner()
}

fn names(response: &ListOperationsResponse) -> Vec<&str> {
    let operations = response.operations.iter();
    operations.map(|operation| &*operation.name).collect()
}

// Rules: DEL-4
#[tokio::test]
async fn deleted_operations_are_listed_until_they_are_done() {
    let harness = Harness::start().await;
    let mut admin = admin_client(&harness);
    let running = harness.create_queued("q").await;
    let lease = harness.lease_one("q", "w").await;
    let pending = harness.create_queued("q").await;
    let visible = harness.create_queued("q").await;
    harness.delete(&running).await;
    harness.delete(&pending).await;

    assert_eq!(names(&list(&mut admin, "", false).await), [&*visible]);
    let listed = list(&mut admin, "", true).await;
    assert_eq!(names(&listed), [&*visible, &pending, &running]);
    assert_eq!(listed.deleted_names, [&*pending, &running]);
    let states: Vec<_> = (listed.operations.iter())
        .map(|operation| decode_metadata(operation).state())
        .collect();
    assert_eq!(states, [State::Pending, State::Pending, State::Running]);
    let filtered = list(&mut admin, "metadata.state = RUNNING", true).await;
    assert_eq!(names(&filtered), [&*running]);
    let by_name = list(&mut admin, &format!("name = \"{pending}\""), true).await;
    assert_eq!(names(&by_name), [&*pending]);

    harness
        .finish(&lease, Outcome::Response(string_value("unseen")))
        .await;
    let listed = list(&mut admin, "", true).await;
    assert_eq!(names(&listed), [&*visible, &pending]);
}

// Rules: DEL-4
#[tokio::test]
async fn deleted_operations_can_be_cancelled_by_operators_only() {
    let harness = Harness::start().await;
    let mut admin = admin_client(&harness);
    let running = harness.create_queued("q").await;
    let lease = harness.lease_one("q", "w").await;
    let pending = harness.create_queued("q").await;
    harness.delete(&running).await;
    harness.delete(&pending).await;
    for name in [&running, &pending] {
        let request =
            longrunning::proto::google::longrunning::CancelOperationRequest { name: name.clone() };
        let refused = harness.client.clone().cancel_operation(request).await;
        assert_eq!(refused.unwrap_err().code(), Code::NotFound);
        let request = CancelOperationRequest { name: name.clone() };
        admin.cancel_operation(request).await.unwrap();
    }
    // The pending one was ended and so removed; the worker of the other one is asked to stop.
    let listed = list(&mut admin, "", true).await;
    assert_eq!(names(&listed), [&*running]);
    assert!(decode_metadata(&listed.operations[0]).cancel_requested);
    let directive = harness.heartbeat_one(&lease).await;
    assert_eq!(directive.kind(), Kind::CancelRequested);
    let request = CancelOperationRequest { name: pending };
    let gone = expect_status_error(admin.cancel_operation(request).await);
    assert_eq!(
        gone.code_and_reason(),
        (Code::NotFound, "OPERATION_NOT_FOUND")
    );
}

// Rules: DEL-4
#[tokio::test]
async fn id_of_deleted_operation_is_refused_with_what_to_do() {
    let harness = Harness::start().await;
    let request = || CreateOperationRequest {
        operation_id: "export-1".into(),
        ..queued_request("q")
    };
    let name = harness.create_operation(request()).await;
    harness.delete(&name).await;
    let refused = harness.try_create(request()).await.unwrap_err();
    assert!(refused.message().contains("was deleted"), "{refused:?}");
    let refused = expect_status_error::<()>(Err(refused));
    assert_eq!(
        refused.code_and_reason(),
        (Code::AlreadyExists, "OPERATION_EXISTS")
    );
    let request_cancel = CancelOperationRequest { name };
    let mut admin = admin_client(&harness);
    admin.cancel_operation(request_cancel).await.unwrap();
    harness.create_operation(request()).await;
}
