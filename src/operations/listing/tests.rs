//! Lists with filters: a plan leaves nothing out, and pages together hold the
//! whole list.

use proptest::prelude::*;

use super::*;
use crate::{
    metrics::Metrics,
    query::samples::{End, Facts, Metadata, any_facts, any_filter, types},
};

/// A view of these operations, of which every seventh has gone away again and
/// every fifth is as it was made only after it was something else.
fn view(all: &[Facts]) -> View {
    let view = View::new(Clock::system(), &Metrics::default(), 10);
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
        let page = page(view, types(), Clock::system(), &request)
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
    let facts = Facts {
        parent: "",
        id: String::new(),
        end: End::Succeeded,
        queue: None,
        env: None,
        team: None,
        created: 0,
        metadata: Metadata::Own(None),
    };
    let view = View::new(Clock::system(), &Metrics::default(), 10);
    let count = u64::try_from(SCAN + 2 * FILTERED_STRETCH).unwrap();
    for number in 1..=count {
        let id = format!("a{number}");
        let facts = Facts {
            id,
            ..facts.clone()
        };
        view.publish(&Arc::new(facts.operation(number)));
    }
    let request = ListOperationsRequest {
        filter: "name = \"*/a1\"".into(),
        ..Default::default()
    };
    let first = page(&view, types(), Clock::system(), &request)
        .await
        .unwrap();
    assert!(first.operations.is_empty() && !first.next_page_token.is_empty());
    let names = names(&view, "", &request.filter, 0).await;
    assert_eq!(names, ["operations/a1"]);
}
