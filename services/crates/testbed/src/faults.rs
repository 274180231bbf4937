//! What may happen to a deployment and its engines, one thing after the other under load, and what devices notice of it.
//!
//! Deliberately absent: faults at the same time, and what devices have in the end ([`Load::conclude`]).

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use wardline::node::Role;

use crate::cable::Way;
use crate::deployment::Deployment;
use crate::engines::Control;
use crate::load::{Load, Probe, Waits};
use crate::team::Failed;

/// How often things are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often something is said while something is waited for.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long messages may take after a fault, and instances until they are ready again.
const RECOVERY: Duration = Duration::from_secs(120);
/// How long an instance is paused: long enough that others have taken over.
const PAUSE: Duration = Duration::from_secs(30);
/// How long one engine's process is away or paused.
const ENGINE_AWAY: Duration = Duration::from_secs(10);
/// How long all of an engine is away.
const OUTAGE: Duration = Duration::from_secs(15);

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for one instance, and a new one in its place.
    Kill(Role),
    /// All instances, one at a time, replaced by new ones and drained: an upgrade.
    Drain(Role),
    /// One instance stands still until others have taken over, and wakes up not knowing it.
    Pause(Role),
    /// Two instances more, and two fewer.
    Scale,
    /// Redis is killed and comes back empty.
    Redis,
    /// A CQL node is killed and comes back.
    CqlKill,
    /// A CQL node stands still.
    CqlPause,
    /// A broker is killed and comes back.
    BrokerKill,
    /// Connections to engines are reset, then silent, then reset again.
    Cables,
    /// All brokers are killed and come back.
    KafkaAway,
    /// All CQL nodes are killed and come back.
    CqlAway,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(role) => write!(f, "kill-{}", role.name()),
            Self::Drain(role) => write!(f, "drain-{}", role.name()),
            Self::Pause(role) => write!(f, "pause-{}", role.name()),
            Self::Scale => f.write_str("scale"),
            Self::Redis => f.write_str("redis"),
            Self::CqlKill => f.write_str("cql-kill"),
            Self::CqlPause => f.write_str("cql-pause"),
            Self::BrokerKill => f.write_str("broker-kill"),
            Self::Cables => f.write_str("cables"),
            Self::KafkaAway => f.write_str("kafka-away"),
            Self::CqlAway => f.write_str("cql-away"),
        }
    }
}

impl Fault {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<_> = Role::ALL.map(Self::Kill).into();
        all.extend(Role::ALL.map(Self::Drain));
        all.extend([Self::Pause(Role::Presence), Self::Pause(Role::Fanout), Self::Scale, Self::Redis]);
        all.extend([Self::CqlKill, Self::CqlPause, Self::BrokerKill, Self::Cables, Self::KafkaAway, Self::CqlAway]);
        all
    }

    /// Those that take little time.
    pub fn short() -> Vec<Self> {
        let mut short: Vec<_> = Role::ALL.map(Self::Kill).into();
        short.extend([Self::Redis, Self::Drain(Role::Presence)]);
        short
    }

    /// Which engine's processes it needs power over.
    const fn engine(self) -> Option<&'static str> {
        match self {
            Self::Redis => Some("redis"),
            Self::CqlKill | Self::CqlPause | Self::CqlAway => Some("cql"),
            Self::BrokerKill | Self::KafkaAway => Some("broker"),
            _ => None,
        }
    }
}

/// What a fault did.
#[derive(Debug)]
pub struct Row {
    /// Which.
    pub fault: Fault,
    /// When it began, since the first.
    pub at: Duration,
    /// What devices waited for, from its beginning until the end of the last probe.
    pub waits: Waits,
    /// How long a message took that was sent right after the worst of it. `None` when the fault was left out.
    pub recovered: Option<Duration>,
    /// What else is worth knowing.
    pub note: String,
}

impl Row {
    /// The heading of the table.
    pub const HEADING: &str = "fault             at       longest silence  slowest message  recovered after";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, at, waits, recovered, note } = self;
        let name = fault.to_string();
        let Some(recovered) = recovered else { return write!(f, "{name:<16}  left out: {note}") };
        let seconds = Duration::as_secs_f64;
        let (at, silence, slowest) = (at.as_secs(), seconds(&waits.silence), seconds(&waits.slowest));
        write!(f, "{name:<16}  {at:>4} s  {silence:>13.1} s  {slowest:>13.1} s  {:>13.1} s", seconds(recovered))?;
        if note.is_empty() { Ok(()) } else { write!(f, "  {note}") }
    }
}

/// A deployment under load, and power over what it runs on.
#[derive(Debug)]
pub struct Faults<'a> {
    deployment: &'a mut Deployment,
    control: Option<Control>,
    load: &'a Load,
    began: Instant,
    notes: Vec<String>,
    say: fn(&str),
}

/// Probes, or why a fault cannot be.
type Struck = Result<Result<Vec<Probe>, &'static str>, Failed>;

impl<'a> Faults<'a> {
    /// `say` gets lines about progress.
    pub fn new(deployment: &'a mut Deployment, control: Option<Control>, load: &'a Load, say: fn(&str)) -> Self {
        Self { deployment, control, load, began: Instant::now(), notes: Vec::new(), say }
    }

    /// Lets `fault` happen, and waits until everything is as before.
    ///
    /// # Errors
    /// It does not become so.
    pub async fn strike(&mut self, fault: Fault) -> Result<Row, Failed> {
        let at = self.began.elapsed();
        (self.say)(&format!("{fault} …"));
        self.load.waits();
        let struck = match (fault.engine(), &self.control) {
            (Some(_), None) => Err("the engines are not ours to stop"),
            _ => self.happen(fault).await?,
        };
        let probes = match struck {
            Ok(probes) => probes,
            Err(why) => {
                return Ok(Row { fault, at, waits: Waits::default(), recovered: None, note: why.to_owned() });
            }
        };
        let recovered = self.recovered(fault, &probes).await?;
        let note = std::mem::take(&mut self.notes).join("; ");
        Ok(Row { fault, at, waits: self.load.waits(), recovered: Some(recovered), note })
    }

    async fn happen(&mut self, fault: Fault) -> Struck {
        match fault {
            Fault::Kill(role) => self.kill(role).await,
            Fault::Drain(role) => self.drain(role).await,
            Fault::Pause(role) => self.pause(role).await,
            Fault::Scale => self.scale().await,
            Fault::Redis => self.engine_away("redis", None, ENGINE_AWAY, false).await,
            Fault::CqlKill => self.engine_away("cql", Some(self.nodes()), ENGINE_AWAY, self.nodes() > 2).await,
            Fault::BrokerKill => {
                self.engine_away("broker", Some(self.brokers()), ENGINE_AWAY, self.brokers() > 2).await
            }
            Fault::KafkaAway => self.engine_away("broker", None, OUTAGE, false).await,
            Fault::CqlAway => self.engine_away("cql", None, OUTAGE, false).await,
            Fault::CqlPause => self.engine_paused("cql", self.nodes()).await,
            Fault::Cables => self.cables().await,
        }
    }

    fn nodes(&self) -> usize {
        self.control.as_ref().map_or(0, Control::nodes)
    }

    fn brokers(&self) -> usize {
        self.control.as_ref().map_or(0, Control::brokers)
    }

    fn control(&self) -> Result<Control, Failed> {
        self.control.clone().ok_or_else(|| "the engines are not ours to stop".into())
    }

    async fn kill(&mut self, role: Role) -> Struck {
        self.deployment.kill(role, 0).await?;
        let probe = self.load.probe()?;
        self.deployment.add(role).await?;
        Ok(Ok(vec![probe]))
    }

    async fn drain(&mut self, role: Role) -> Struck {
        let mut longest = Duration::ZERO;
        for _ in 0..self.deployment.count(role) {
            self.deployment.add(role).await?;
            longest = longest.max(self.deployment.drain(role, 0).await?);
        }
        self.notes.push(format!("longest drain {:.1} s", longest.as_secs_f64()));
        Ok(Ok(vec![self.load.probe()?]))
    }

    async fn pause(&mut self, role: Role) -> Struck {
        self.deployment.pause(role, 0).await?;
        let paused = self.load.probe()?;
        self.pass(PAUSE).await?;
        self.deployment.resume(role, 0).await?;
        let awake = self.load.probe()?;
        // Alone, nobody can take over: what was sent meanwhile is only awaited once it is awake.
        Ok(Ok(if self.deployment.count(role) > 1 { vec![paused, awake] } else { vec![awake] }))
    }

    async fn scale(&mut self) -> Struck {
        let roles = [Role::Presence, Role::Fanout];
        for role in roles {
            self.deployment.spawn(role)?;
        }
        self.deployment.ready().await?;
        let more = self.load.probe()?;
        self.arrives("more instances", &more).await?;
        for role in roles {
            self.deployment.drain(role, 0).await?;
        }
        Ok(Ok(vec![more, self.load.probe()?]))
    }

    /// `survives`: the others go on without it.
    async fn engine_away(&mut self, engine: &str, number: Option<usize>, away: Duration, survives: bool) -> Struck {
        let control = self.control()?;
        control.kill(engine, number).await?;
        let mut probes = Vec::new();
        if survives || engine == "redis" {
            probes.push(self.load.probe()?);
        }
        self.pass(away).await?;
        control.restart(engine, number).await?;
        probes.push(self.load.probe()?);
        Ok(Ok(probes))
    }

    async fn engine_paused(&mut self, engine: &str, number: usize) -> Struck {
        let control = self.control()?;
        control.pause(engine, Some(number)).await?;
        let paused = self.load.probe();
        let passed = self.pass(ENGINE_AWAY).await;
        control.resume(engine, Some(number)).await?;
        passed?;
        Ok(Ok(vec![paused?, self.load.probe()?]))
    }

    async fn cables(&mut self) -> Struck {
        let cables = self.deployment.engines().cables();
        if cables.each().next().is_none() {
            return Ok(Err("no cable leads to any engine"));
        }
        for (engine, laid) in [("Kafka", &cables.kafka), ("CQL", &cables.cql)] {
            if laid.is_empty() {
                self.notes.push(format!("none lead to {engine}"));
            }
        }
        cables.each().for_each(crate::cable::Cable::cut);
        let cut = self.load.probe()?;
        self.arrives("connections that were cut", &cut).await?;
        self.every_way(Way::Silent);
        let passed = self.pass(ENGINE_AWAY).await;
        self.every_way(Way::Closed);
        self.every_way(Way::Open);
        passed?;
        Ok(Ok(vec![cut, self.load.probe()?]))
    }

    fn every_way(&self, way: Way) {
        self.deployment.engines().cables().each().for_each(|cable| cable.set(way));
    }

    /// Lets time pass under load.
    async fn pass(&mut self, time: Duration) -> Result<(), Failed> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.look()?;
            sleep(LOOK.min(until - Instant::now())).await;
        }
        Ok(())
    }

    /// What is found by looking: instances that ended, and messages that were refused.
    fn look(&mut self) -> Result<(), Failed> {
        for ended in self.deployment.supervise()? {
            self.notes.push(ended.lines().next().unwrap_or_default().to_owned());
            (self.say)(&ended);
        }
        self.load.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Waits until all probes are on all devices and all instances are ready.
    async fn recovered(&mut self, fault: Fault, probes: &[Probe]) -> Result<Duration, Failed> {
        let mut longest = Duration::ZERO;
        for probe in probes {
            longest = longest.max(self.arrives(&fault.to_string(), probe).await?);
        }
        let until = Instant::now() + RECOVERY;
        while !self.deployment.unready().is_empty() {
            if Instant::now() > until {
                let who = self.deployment.unready().join(", ");
                return Err(format!("after {fault}, not ready: {who}\n{}", self.deployment.last_words()).into());
            }
            self.pass(LOOK).await?;
        }
        Ok(longest)
    }

    async fn arrives(&mut self, after: &str, probe: &Probe) -> Result<Duration, Failed> {
        let began = Instant::now();
        let mut said = began;
        loop {
            if let Some(took) = self.load.arrived(probe) {
                return Ok(took);
            }
            let (sent, missing) = self.load.messages();
            if began.elapsed() > RECOVERY {
                let words = self.deployment.last_words();
                return Err(format!("after {after}, {missing} of {sent} messages do not arrive\n{words}").into());
            }
            if said.elapsed() > PROGRESS {
                said = Instant::now();
                let unready = self.deployment.unready().join(", ");
                (self.say)(&format!("  {missing} of {sent} messages are under way; not ready: {unready}"));
            }
            self.pass(LOOK).await?;
        }
    }
}
