//! Lanes: where connections go, and how tasks end.

use tokio::sync::oneshot;

use super::*;

fn open(lanes: &Lanes) -> Vec<usize> {
    lanes
        .lanes
        .iter()
        .map(|lane| lane.open.load(Ordering::Relaxed))
        .collect()
}

#[test]
fn a_connection_goes_to_the_lane_with_the_fewest() {
    let lanes = Lanes::start(3).unwrap();
    let mut places: Vec<_> = (0..7).map(|_| lanes.place()).collect();
    assert_eq!(open(&lanes), [3, 2, 2]);

    places.swap_remove(1);
    places.swap_remove(4);
    assert_eq!(open(&lanes), [3, 0, 2]);
    let _next = lanes.place();
    assert_eq!(open(&lanes), [3, 1, 2]);
}

#[test]
fn without_a_number_there_is_a_lane_for_each_processor() {
    let processors = std::thread::available_parallelism().unwrap().get();
    assert_eq!(open(&Lanes::start(0).unwrap()).len(), processors);
}

#[tokio::test]
async fn a_lane_is_a_thread_of_its_own() {
    let lanes = Lanes::start(2).unwrap();
    let places = [lanes.place(), lanes.place()];
    for (index, place) in places.iter().enumerate() {
        let name = place
            .runtime()
            .spawn(async { thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.unwrap(), Some(format!("lane-{index}")));
    }
}

#[tokio::test]
async fn tasks_are_dropped_with_the_last_of_the_lanes() {
    let lanes = Lanes::start(1).unwrap();
    let (held, mut dropped) = oneshot::channel::<()>();
    lanes.place().runtime().spawn(async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    let clone = lanes.clone();
    drop(lanes);
    tokio::task::yield_now().await;
    assert!(
        dropped
            .try_recv()
            .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
    );

    drop(clone);
    dropped.await.unwrap_err();
}
