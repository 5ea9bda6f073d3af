//! Lists with filters: a plan leaves nothing out, pages together hold the whole
//! list, and no page keeps its thread or its caller for long.

use std::{
    future::{Future, poll_fn},
    pin::pin,
};

use proptest::prelude::*;

use super::*;
use crate::{
    metrics::Metrics,
    query::samples::{End, Facts, Metadata, any_facts, any_filter, types},
};

/// An operation without anything by which it could be found.
const PLAIN: Facts = Facts {
    parent: "",
    id: String::new(),
    end: End::Succeeded,
    queue: None,
    env: None,
    team: None,
    created: 0,
    metadata: Metadata::Own(None),
};

/// So many operations, with so many numbers in their metadata.
fn heavy(count: u64, numbers: u16) -> View {
    let view = View::new(Clock::system(), &Metrics::default(), 10, None);
    for number in 1..=count {
        let facts = Facts {
            id: format!("a{number}"),
            metadata: Metadata::Numbers(numbers),
            ..PLAIN
        };
        view.publish(&Arc::new(facts.operation(number)));
    }
    view
}

fn request(filter: &str) -> ListOperationsRequest {
    ListOperationsRequest {
        filter: filter.into(),
        ..Default::default()
    }
}

/// A view of these operations, of which every seventh has gone away again and
/// every fifth is as it was made only after it was something else.
fn view(all: &[Facts]) -> View {
    let view = View::new(Clock::system(), &Metrics::default(), 10, None);
    for (number, facts) in (1..).zip(all) {
        if view.find(&facts.name()).is_some() {
            continue;
        }
        if number % 5 == 0 {
            let other = Facts {
                end: End::Running,
                ..facts.clone()
            };
            view.publish(&Arc::new(other.operation(number)));
        }
        let operation = Arc::new(facts.operation(number));
        view.publish(&operation);
        if number % 7 == 0 {
            view.forget(&operation);
        }
    }
    view
}

/// All pages of a list.
async fn names(view: &View, name: &str, filter: &str, page_size: i32) -> Vec<String> {
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListOperationsRequest {
            name: name.into(),
            filter: filter.into(),
            page_size,
            page_token,
            ..Default::default()
        };
        let page = page(view, None, true, types(), Clock::system(), &request)
            .await
            .unwrap();
        names.extend(page.operations.iter().map(|found| found.name().to_owned()));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return names;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_planned_list_is_that_of_a_full_scan(
        facts in proptest::collection::vec(any_facts(), 0..200),
        filters in proptest::collection::vec(any_filter(), 1..8),
        page_size in 1i32..50,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let view = view(&facts);
        for filter in filters {
            let query = Query::new(&filter, types()).unwrap();
            for scope in ["", "operations", "projects/p", "operations/-", "nothing/here"] {
                let expected = full_scan(&view, scope, &query);
                let found = runtime.block_on(names(&view, scope, &filter.to_string(), page_size));
                prop_assert_eq!(found, expected, "{} of {:?}: {}", filter, scope, Plan::of(&query));
            }
        }
    }
}

fn full_scan(view: &View, scope: &str, query: &Query) -> Vec<String> {
    let scope = Scope::parse(scope).unwrap();
    let walk = view.index.walk(&scope, &Plan::EVERYTHING, |_| None);
    let all = view.index.stretch(&walk, u64::MAX, usize::MAX);
    assert_eq!(all.rest, None);
    let all = all.operations.into_iter();
    all.filter(|operation| scope.holds(operation.name()) && query.matches(operation))
        .map(|operation| operation.name().to_owned())
        .collect()
}

#[tokio::test]
async fn a_page_of_a_long_search_is_short_and_leads_on() {
    let view = View::new(Clock::system(), &Metrics::default(), 10, None);
    let count = u64::try_from(SCAN + 2 * FILTERED_STRETCH).unwrap();
    for number in 1..=count {
        let id = format!("a{number}");
        let facts = Facts { id, ..PLAIN };
        view.publish(&Arc::new(facts.operation(number)));
    }
    let request = request("name = \"*/a1\"");
    let first = page(&view, None, true, types(), Clock::system(), &request)
        .await
        .unwrap();
    assert!(first.operations.is_empty() && !first.next_page_token.is_empty());
    let names = names(&view, "", &request.filter, 0).await;
    assert_eq!(names, ["operations/a1"]);
}

#[tokio::test]
async fn others_have_a_turn_after_each_operation_that_takes_long() {
    // The first are asked aside, the others in place.
    for (count, numbers) in [(12, 6000), (24, 1500)] {
        let view = heavy(count, numbers);
        for filter in [
            "nowhere",
            "metadata.numbers:-1",
            "nowhere OR metadata.x = 1",
        ] {
            let request = request(filter);
            let mut listed = pin!(page(&view, None, true, types(), Clock::system(), &request));
            let mut turns = 0;
            let listed = poll_fn(|context| {
                turns += 1;
                listed.as_mut().poll(context)
            });
            let listed = listed.await.unwrap();
            assert!(listed.operations.is_empty());
            let is_short = !listed.next_page_token.is_empty();
            assert!(10 < turns || is_short, "{filter}: {turns}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_ends_in_time_however_long_each_operation_takes() {
    let view = heavy(4, 6000);
    let clock = Clock::system();
    let request = request("nowhere OR metadata.numbers:7");
    let time = async {
        loop {
            tokio::time::advance(Duration::from_millis(50)).await;
            yield_now().await;
        }
    };
    let first = tokio::select! {
        first = page(&view, None, true, types(), clock, &request) => first.unwrap(),
        () = time => panic!("time has no end"),
    };
    // The one that was begun is asked to its end.
    assert_eq!(first.operations.len(), 1);
    assert!(!first.next_page_token.is_empty());
    let all = names(&view, "", &request.filter, 0).await;
    let expected = [
        "operations/a4",
        "operations/a3",
        "operations/a2",
        "operations/a1",
    ];
    assert_eq!(all, expected);
}

#[test]
fn what_a_list_looks_at_is_told_and_not_only_planned() {
    let view = View::new(Clock::system(), &Metrics::default(), 10, None);
    for number in 1..=1000 {
        let facts = Facts {
            parent: if number == 1 { "projects/p" } else { "" },
            id: format!("a{number}"),
            end: if number < 500 {
                End::Running
            } else {
                End::Succeeded
            },
            env: Some("prod"),
            ..PLAIN
        };
        view.publish(&Arc::new(facts.operation(number)));
    }
    let looks_at = |scope: &str, filter: &str| {
        let query = Query::parse(filter, types()).unwrap();
        let (plan, scope) = (Plan::of(&query), Scope::parse(scope).unwrap());
        view.index.walk(&scope, &plan, |_| None).to_string()
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
        // The server may have made such names itself.
        ("", "name = \"operations/019*\"", "everything"),
        (
            "",
            "name = \"operations/019*\" AND labels.env = prod",
            "label env=\"prod\"",
        ),
        // Few are in the parent, and many are running.
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
        assert_eq!(looks_at(scope, filter), expected, "{scope}: {filter}");
    }
}
