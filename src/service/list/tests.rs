//! Lists with filters: plans are complete, pages are disjoint and complete, and a
//! page blocks neither its thread nor its caller for long.

use std::{
    future::{Future, poll_fn},
    pin::pin,
};

use proptest::prelude::*;

use super::*;
use crate::{
    metrics::Metrics,
    query::testing::{
        SampleMetadata, SampleOperation, SampleState, any_sample_filter, any_sample_operation,
        built_in_types, print_filter,
    },
};

/// An operation without optional fields.
const MINIMAL_SAMPLE: SampleOperation = SampleOperation {
    parent: "",
    id: String::new(),
    state: SampleState::Succeeded,
    queue: None,
    env: None,
    team: None,
    created_after_secs: 0,
    metadata: SampleMetadata::Server(None),
};

/// Returns a view of `count` operations with `numbers` numbers each in their metadata.
fn view_with_large_metadata(count: u64, numbers: u16) -> View {
    let view = View::new(Clock::system(), &Metrics::default(), 10, None);
    for number in 1..=count {
        let sample = SampleOperation {
            id: format!("a{number}"),
            metadata: SampleMetadata::Numbers(numbers),
            ..MINIMAL_SAMPLE
        };
        view.publish(&Arc::new(sample.to_operation(number)));
    }
    view
}

fn request(filter: &str) -> ListOperationsRequest {
    ListOperationsRequest {
        filter: filter.into(),
        ..Default::default()
    }
}

/// Returns a view of these operations. Every seventh is removed again, and every
/// fifth has an earlier revision in another state.
fn view_of(samples: &[SampleOperation]) -> View {
    let view = View::new(Clock::system(), &Metrics::default(), 10, None);
    for (number, sample) in (1..).zip(samples) {
        if view.get_any(&sample.name()).is_some() {
            continue;
        }
        if number % 5 == 0 {
            let earlier = SampleOperation {
                state: SampleState::Running,
                ..sample.clone()
            };
            view.publish(&Arc::new(earlier.to_operation(number)));
        }
        let operation = Arc::new(sample.to_operation(number));
        view.publish(&operation);
        if number % 7 == 0 {
            view.remove(&operation);
        }
    }
    view
}

fn source(view: &View) -> ListSource<'_> {
    ListSource {
        view,
        shared_store: None,
        is_up_to_date: true,
        types: built_in_types(),
        clock: Clock::system(),
    }
}

/// Returns the names on all pages of a list.
async fn list_all_names(view: &View, name: &str, filter: &str, page_size: i32) -> Vec<String> {
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListOperationsRequest {
            name: name.into(),
            filter: filter.into(),
            page_size,
            page_token,
            ..Default::default()
        };
        let page = source(view).list_page(&request, false).await.unwrap();
        names.extend(
            page.operations
                .iter()
                .map(|operation| operation.name().to_owned()),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return names;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    // Rules: LIST-17
    #[test]
    fn planned_list_equals_full_scan(
        samples in proptest::collection::vec(any_sample_operation(), 0..200),
        filters in proptest::collection::vec(any_sample_filter(), 1..8),
        page_size in 1i32..50,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let view = view_of(&samples);
        for filter in filters {
            let compiled = CompiledFilter::new(&filter, built_in_types()).unwrap();
            let text = print_filter(&filter);
            for scope in ["", "operations", "projects/p", "operations/-", "nothing/here"] {
                let expected = full_scan(&view, scope, &compiled);
                let listed = runtime.block_on(list_all_names(&view, scope, &text, page_size));
                prop_assert_eq!(listed, expected, "{} of {:?}: {:?}", text, scope, Plan::from_filter(&compiled));
            }
        }
    }
}

fn full_scan(view: &View, scope: &str, filter: &CompiledFilter) -> Vec<String> {
    let scope = Scope::parse(scope).unwrap();
    let scan = view.index.scan(&scope, &Plan::EVERYTHING, |_| None);
    let all = view.index.scan_batch(&scan, u64::MAX, usize::MAX);
    assert_eq!(all.resume_before, None);
    let all = all.operations.into_iter();
    all.filter(|operation| scope.contains(operation.name()) && filter.matches(operation))
        .map(|operation| operation.name().to_owned())
        .collect()
}

// Rules: LIST-16
#[tokio::test]
async fn long_search_returns_short_page_with_next_page_token() {
    let view = View::new(Clock::system(), &Metrics::default(), 10, None);
    let count = u64::try_from(MAX_EXAMINED + 2 * FILTERED_BATCH_SIZE).unwrap();
    for number in 1..=count {
        let id = format!("a{number}");
        let sample = SampleOperation {
            id,
            ..MINIMAL_SAMPLE
        };
        view.publish(&Arc::new(sample.to_operation(number)));
    }
    let request = request("name = \"*/a1\"");
    let first = source(&view).list_page(&request, false).await.unwrap();
    assert!(first.operations.is_empty() && !first.next_page_token.is_empty());
    let names = list_all_names(&view, "", &request.filter, 0).await;
    assert_eq!(names, ["operations/a1"]);
}

// Rules: LIST-16
#[tokio::test]
async fn list_yields_after_each_expensive_operation() {
    // The filter runs on another thread for the larger ones, inline for the others.
    for (count, numbers) in [(12, 6000), (24, 1500)] {
        let view = view_with_large_metadata(count, numbers);
        for filter in [
            "nowhere",
            "metadata.numbers:-1",
            "nowhere OR metadata.x = 1",
        ] {
            let request = request(filter);
            let source = source(&view);
            let mut list = pin!(source.list_page(&request, false));
            let mut polls = 0;
            let page = poll_fn(|context| {
                polls += 1;
                list.as_mut().poll(context)
            });
            let page = page.await.unwrap();
            assert!(page.operations.is_empty());
            let is_short = !page.next_page_token.is_empty();
            assert!(polls > 10 || is_short, "{filter}: {polls}");
        }
    }
}

// Rules: LIST-16
#[tokio::test(start_paused = true)]
async fn page_ends_within_time_budget_despite_expensive_operations() {
    let view = view_with_large_metadata(4, 6000);
    let source = source(&view);
    let request = request("nowhere OR metadata.numbers:7");
    let advance_clock = async {
        loop {
            tokio::time::advance(Duration::from_millis(50)).await;
            yield_now().await;
        }
    };
    let first = tokio::select! {
        first = source.list_page(&request, false) => first.unwrap(),
        () = advance_clock => unreachable!(),
    };
    // An evaluation that has begun is completed.
    assert_eq!(first.operations.len(), 1);
    assert!(!first.next_page_token.is_empty());
    let all = list_all_names(&view, "", &request.filter, 0).await;
    let expected = [
        "operations/a4",
        "operations/a3",
        "operations/a2",
        "operations/a1",
    ];
    assert_eq!(all, expected);
}

#[test]
fn scan_description_names_indexes_actually_scanned() {
    let view = View::new(Clock::system(), &Metrics::default(), 10, None);
    for number in 1..=1000 {
        let sample = SampleOperation {
            parent: if number == 1 { "projects/p" } else { "" },
            id: format!("a{number}"),
            state: if number < 500 {
                SampleState::Running
            } else {
                SampleState::Succeeded
            },
            env: Some("prod"),
            ..MINIMAL_SAMPLE
        };
        view.publish(&Arc::new(sample.to_operation(number)));
    }
    let describe_scan = |scope: &str, filter: &str| {
        let filter = CompiledFilter::parse(filter, built_in_types()).unwrap();
        let (plan, scope) = (Plan::from_filter(&filter), Scope::parse(scope).unwrap());
        view.index.scan(&scope, &plan, |_| None).to_string()
    };
    for (scope, filter, expected) in [
        ("", "state = RUNNING", "state RUNNING"),
        (
            "",
            "labels.env = prod AND done = false",
            "(label env=\"prod\" and (state PENDING or state RUNNING))",
        ),
        (
            "",
            "name = \"operations/a1*\"",
            "names with \"operations/a1\"",
        ),
        (
            "",
            "name = \"operations/feed*\"",
            "names with \"operations/feed\"",
        ),
        // A UUIDv7 prefix may match many server-generated names.
        ("", "name = \"operations/019*\"", "everything"),
        (
            "",
            "name = \"operations/019*\" AND labels.env = prod",
            "label env=\"prod\"",
        ),
        // The parent has fewer operations than the state.
        ("projects/p", "state = RUNNING", "everything"),
        (
            "",
            "create_time > 2020-01-01T00:00:00Z",
            "everything, by creation time",
        ),
        (
            "",
            "queue = a OR create_time > 2020-01-01T00:00:00Z",
            "everything",
        ),
    ] {
        assert_eq!(describe_scan(scope, filter), expected, "{scope}: {filter}");
    }
}
