//! `wardline-cluster`: a deployment as processes over the engines that the environment names (see [`crate::engines`]), to be
//! looked at in a demonstration or to be held to its promises under faults.
//!
//! Deliberately absent: starting engines. `deploy/engines/with` runs this with fresh ones.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use wardline::dev;

use crate::deployment::{self, Deployment};
use crate::engines::{Control, Engines};
use crate::faults::{Fault, Faults, Row};
use crate::load::{self, Load};
use crate::team::{self, Failed};

/// How long each step of the demonstration may take.
const STEP: Duration = Duration::from_secs(60);

/// Wardline as processes of its roles, over engines that run already (WARDLINE_TEST_ENGINES and the variables beside it;
/// `deploy/engines/with` sets them).
#[derive(Debug, Parser)]
#[command(name = "wardline-cluster", disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// The server [default: `wardline` beside this program].
    #[arg(long, global = true, value_name = "FILE")]
    pub wardline: Option<PathBuf>,

    /// Where keys, devices and diagnostics lie [default: a folder that is removed when all went well].
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Play the demonstration of `wardline dev` against a cluster.
    Demo(DemoArgs),
    /// Let devices talk while instances and engines come and go, and see that nothing is lost, repeated or reordered.
    Faults(FaultArgs),
}

/// `wardline-cluster demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Instances of each role.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub instances: usize,
}

/// `wardline-cluster faults`.
#[derive(Debug, Args)]
pub struct FaultArgs {
    /// A minute or so: few devices, few instances, the quick faults.
    #[arg(long)]
    pub short: bool,

    /// How often the whole list.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub rounds: usize,

    /// Only faults whose name contains this; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,

    /// Conversations, of five people, with --short of three, with two devices each [default: 5, with --short 1].
    #[arg(long, value_name = "N")]
    pub teams: Option<usize>,

    /// Messages per second that all devices together send [default: 6, with --short 4].
    #[arg(long, value_name = "NUMBER")]
    pub rate: Option<f64>,

    /// The program with power over the engines.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../deploy/engines/engines"))]
    pub engines: PathBuf,
}

/// Runs the command. A signal ends it, with everything that it started.
///
/// # Errors
/// Something is not as promised, or could not be tried.
pub async fn run(cli: Cli) -> Result<(), Failed> {
    let made =
        if cli.dir.is_none() { Some(tempfile::Builder::new().prefix("wardline-cluster-").tempdir()?) } else { None };
    let dir = match (&cli.dir, &made) {
        (Some(dir), _) => {
            std::fs::create_dir_all(dir)?;
            dir.canonicalize()?
        }
        (None, made) => made.as_ref().map(|made| made.path().to_owned()).ok_or("no folder")?,
    };
    let binary = match cli.wardline {
        Some(binary) => binary,
        None => std::env::current_exe()?.with_file_name("wardline"),
    };
    let bed = Bed { binary, dir };
    let work = async {
        match &cli.command {
            Command::Demo(args) => bed.demo(args).await,
            Command::Faults(args) => bed.faults(args).await,
        }
    };
    // What was started is killed when the work is dropped.
    let ended = tokio::select! {
        ended = work => ended,
        name = interrupted() => Err(format!("ended by {}", name?).into()),
    };
    if ended.is_err()
        && let Some(made) = made
    {
        say(&format!("keys, devices and diagnostics are kept in {}", made.keep().display()));
    }
    ended
}

async fn interrupted() -> io::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}

struct Bed {
    binary: PathBuf,
    dir: PathBuf,
}

impl Bed {
    async fn deployment(&self, plan: &deployment::Plan) -> Result<Deployment, Failed> {
        let began = Instant::now();
        let engines = Engines::configured()?;
        if matches!(engines, Engines::Embedded) {
            return Err("no engines: set WARDLINE_TEST_ENGINES, or run this with deploy/engines/with".into());
        }
        let deployment = Deployment::start(&self.binary, &self.dir, engines.fresh().await?, plan).await?;
        let deployment::Plan { ingest, fanout, presence, receipt, directory } = plan;
        say(&format!(
            "{ingest} ingest, {fanout} fanout, {presence} presence, {receipt} receipt, {directory} directory ready after \
             {:.1} s",
            began.elapsed().as_secs_f64()
        ));
        Ok(deployment)
    }

    async fn demo(&self, args: &DemoArgs) -> Result<(), Failed> {
        let deployment = self.deployment(&deployment::Plan::of_each(args.instances)).await?;
        let played = dev::play(&deployment.addresses(), &self.dir.join("devices"), STEP).await;
        played.map_err(|error| format!("{error}\n{}", deployment.last_words()).into())
    }

    async fn faults(&self, args: &FaultArgs) -> Result<(), Failed> {
        let (plan, talk, faults) = planned(args)?;
        say(&format!("seed {} ({}=… repeats what is random)", talk.seed, team::SEED));
        let mut deployment = self.deployment(&plan).await?;
        let control = deployment.engines().control(&args.engines);
        let devices = self.dir.join("devices");
        std::fs::create_dir_all(&devices)?;
        let people = deployment.people(&devices);
        let began = Instant::now();
        let load = Load::start(&people, talk).await?;
        say(&format!(
            "{} devices of {} people in {} conversations, gathered in {:.1} s; {} messages/s",
            load.devices(),
            talk.teams * talk.users,
            talk.teams,
            began.elapsed().as_secs_f64(),
            talk.rate
        ));
        // Ended or not, the engines are left as they were found.
        let mended = Mended(control.clone());
        let rows = strike(&mut deployment, control, &load, faults, args.rounds).await;
        drop(mended);
        let rows = rows.map_err(|error| told(&error, &deployment))?;
        say(&format!("\n{}", Row::HEADING));
        rows.iter().for_each(|row| say(&row.to_string()));
        let devices = load.devices();
        say("\nall faults are over; waiting until all devices agree …");
        let messages = load.conclude(&people).await.map_err(|error| told(&error, &deployment))?;
        let panics = deployment.panics()?;
        if !panics.is_empty() {
            return Err(panics.join("\n").into());
        }
        say(&format!(
            "PASS {} faults, {messages} messages, {devices} devices: none lost, none repeated in effect, one order, receipts \
             agree ({:.0} s)",
            rows.iter().filter(|row| row.recovered.is_some()).count(),
            began.elapsed().as_secs_f64()
        ));
        Ok(())
    }
}

fn planned(args: &FaultArgs) -> Result<(deployment::Plan, load::Plan, Vec<Fault>), Failed> {
    let named = |fault: &Fault| args.only.is_empty() || args.only.iter().any(|part| fault.to_string().contains(part));
    let listed = if args.short && args.only.is_empty() { Fault::short() } else { Fault::all() };
    let faults: Vec<_> = listed.into_iter().filter(named).collect();
    if faults.is_empty() {
        let names: Vec<_> = Fault::all().iter().map(Fault::to_string).collect();
        return Err(format!("no fault has this in its name; there are: {}", names.join(", ")).into());
    }
    let seed = team::seed();
    if args.short {
        let plan = deployment::Plan { fanout: 2, presence: 2, ..deployment::Plan::of_each(1) };
        let talk =
            load::Plan { teams: args.teams.unwrap_or(1), users: 3, readers: 2, rate: args.rate.unwrap_or(4.0), seed };
        return Ok((plan, talk, faults));
    }
    let plan = deployment::Plan { receipt: 2, directory: 2, ..deployment::Plan::of_each(3) };
    let (teams, rate) = (args.teams.unwrap_or(5), args.rate.unwrap_or(6.0));
    Ok((plan, load::Plan { teams, users: 5, readers: 3, rate, seed }, faults))
}

async fn strike(
    deployment: &mut Deployment,
    control: Option<Control>,
    load: &Load,
    faults: Vec<Fault>,
    rounds: usize,
) -> Result<Vec<Row>, Failed> {
    let mut striking = Faults::new(deployment, control, load, say);
    let mut rows = Vec::new();
    for _ in 0..rounds {
        for fault in &faults {
            let row = striking.strike(*fault).await?;
            say(&row.to_string());
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Resumes and starts engines that a fault left behind, when it is dropped.
struct Mended(Option<Control>);

impl Drop for Mended {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(Control::mend) {
            say(&format!("the engines could not be mended: {error}"));
        }
    }
}

fn told(error: &Failed, deployment: &Deployment) -> Failed {
    let words = deployment.last_words();
    format!("{error}\n{words}").into()
}

/// A line for whoever looks on.
fn say(line: &str) {
    // Nobody looks on: what counts is the exit code.
    let _ = writeln!(io::stdout().lock(), "{line}");
}
