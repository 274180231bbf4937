//! The law: however often the server is killed, every message that a device queued reaches every device of every member
//! exactly once in effect, in one order, and receipts end up saying just that.
//!
//! Real processes, SIGKILL, the kernel's own disk; and again on a cluster's engines where `WARDLINE_TEST_ENGINES` names them. What
//! a power cut takes beyond that is the subject of `power_cut`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;
use wardline_testbed::engines::Engines;
use wardline_testbed::server::Server;
use wardline_testbed::team::{self, Failed, Progress, Team};

const READERS: usize = 3;

/// How much is said and killed.
struct Plan {
    teams: usize,
    users: usize,
    /// Of each device.
    messages: usize,
    kills: usize,
    /// Of these kills, so many come again while the server starts.
    early_kills: usize,
}

const EMBEDDED: Plan = Plan { teams: 3, users: 5, messages: 15, kills: 20, early_kills: 5 };
/// A killed member of a consumer group is missed for 6 s each time. More kills in a row would leave some devices no moment to be heard.
const CLUSTER: Plan = Plan { teams: 2, users: 3, messages: 10, kills: 5, early_kills: 1 };

/// A kill comes up to so long after the message it waited for.
const JITTER: Duration = Duration::from_millis(5);
/// An early kill comes up to so long after the start.
const EARLY: Duration = Duration::from_millis(400);

/// One after the other: each needs the machine's time for itself.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_loses_repeats_or_reorders_anything() {
    talk_and_be_killed(Engines::Embedded, EMBEDDED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_no_kill_loses_repeats_or_reorders_anything() {
    match Engines::configured().unwrap() {
        engines @ Engines::Cluster(_) => talk_and_be_killed(engines, CLUSTER).await,
        Engines::Embedded => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "WARDLINE_TEST_ENGINES is not set");
            println!("skipped: WARDLINE_TEST_ENGINES is not set");
        }
    }
}

async fn talk_and_be_killed(engines: Engines, plan: Plan) {
    let _turn = TURN.lock().await;
    let seed = team::seed();
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let engines = engines.fresh().await.unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_wardline"));
    let mut server = Server::start_over(binary, &dir.path().join("data"), engines).await.unwrap();
    let run = run(&plan, seed, &mut server, dir.path()).await;
    team::conclude(seed, run.map_err(|failed| format!("{failed}\n{}", server.last_words()).into()));
}

async fn run(plan: &Plan, seed: u64, server: &mut Server, dir: &Path) -> Result<(), Failed> {
    let began = Instant::now();
    let people = server.people(dir)?;
    let mut teams = Vec::new();
    for _ in 0..plan.teams {
        teams.push(Team::gather(&people, plan.users).await?);
    }
    let gathered = began.elapsed();
    let devices: usize = teams.iter().map(Team::size).sum();
    let progress = Progress::new();
    let talking = futures::future::try_join_all(
        teams.iter().zip(1..).map(|(team, number)| team.talk(plan.messages, READERS, seed ^ (number << 32), &progress)),
    );
    tokio::try_join!(talking, kill_often(plan, seed, server, devices * plan.messages, &progress))?;
    let talked = began.elapsed();
    for team in &teams {
        team.converges(READERS, people.endpoints()).await?;
    }
    println!(
        "{} kills and {} during a start, {} messages to {} devices each, longest silence {:.1?}; \
         gathered in {gathered:.1?}, talked until {talked:.1?}, converged after {:.1?}",
        plan.kills,
        plan.early_kills,
        devices * plan.messages,
        plan.users * 2,
        progress.longest_silence(),
        began.elapsed()
    );
    Ok(())
}

/// Kills and restarts at random points of the load.
async fn kill_often(
    plan: &Plan,
    seed: u64,
    server: &mut Server,
    messages: usize,
    progress: &Progress,
) -> Result<(), Failed> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut points = rand::seq::index::sample(&mut random, messages - 1, plan.kills).into_vec();
    points.sort_unstable();
    let early = rand::seq::index::sample(&mut random, plan.kills, plan.early_kills).into_vec();
    for (kill, point) in points.into_iter().enumerate() {
        progress.reaches(point + 1).await?;
        moment(&mut random, JITTER).await;
        if let Some(status) = server.exited()? {
            return Err(format!("the server ended by itself before kill {kill}: {status}").into());
        }
        server.kill()?;
        if early.contains(&kill) {
            server.spawn()?;
            moment(&mut random, EARLY).await;
            server.kill()?;
        }
        server.restart().await?;
    }
    Ok(())
}

/// A random moment. Nothing is waited for: the moment is the fault.
async fn moment(random: &mut StdRng, up_to: Duration) {
    tokio::time::sleep(up_to.mul_f64(random.random())).await;
}
