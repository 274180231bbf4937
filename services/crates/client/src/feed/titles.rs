//! Titles that could not be read when the device joined: every commit seals the title anew, so they are asked for whenever the
//! device may have come to the epoch whose group state the server has.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use openmls::prelude::OpenMlsProvider as _;
use wardline_domain::ConversationId;
use wardline_proto::v1;

use crate::core::Step;
use crate::device::Inner;
use crate::error::Error;
use crate::mls::group;
use crate::store::conversations::{self, Conversation};
use crate::view::ConversationStatus;

/// A conversation without its title, and the epoch in which the device is.
type Untitled = (ConversationId, u64);

/// Asks beside the feed. What fails is tried again with the next events.
pub(super) fn learn(inner: &Arc<Inner>) -> Result<(), Error> {
    if inner.read(|core| conversations::untitled(core.connection()))?.is_empty()
        || inner.learning_titles.swap(true, Ordering::AcqRel)
    {
        return Ok(());
    }
    let inner = Arc::clone(inner);
    inner.tasks.clone().spawn(async move {
        let stop = inner.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = learn_all(&inner) => {}
        }
    });
    Ok(())
}

/// Asks until nothing has changed meanwhile: whoever found this running relies on it.
async fn learn_all(inner: &Arc<Inner>) {
    let mut asked = Vec::new();
    loop {
        let now = untitled(inner).unwrap_or_default();
        if now == asked {
            inner.learning_titles.store(false, Ordering::Release);
            let changed = untitled(inner).is_ok_and(|later| later != now);
            if !changed || inner.learning_titles.swap(true, Ordering::AcqRel) {
                return;
            }
            continue;
        }
        for (id, epoch) in &now {
            if let Err(error) = learn_one(inner, *id, *epoch).await {
                tracing::debug!(%error, "a title cannot be read yet");
            }
        }
        asked = now;
    }
}

fn untitled(inner: &Arc<Inner>) -> Result<Vec<Untitled>, Error> {
    inner.read(|core| {
        let mut untitled = Vec::new();
        for id in conversations::untitled(core.connection())? {
            let epoch = core.conversation(id)?.and_then(|view| view.epoch);
            untitled.extend(epoch.map(|epoch| (id, epoch)));
        }
        Ok(untitled)
    })
}

async fn learn_one(inner: &Arc<Inner>, id: ConversationId, epoch: u64) -> Result<(), Error> {
    let state = inner.rpc.group_state(id, Some(epoch)).await?;
    inner.step(|step| step.learn_title(id, &state))
}

impl Step<'_> {
    /// Takes the title from a group state, if it is of the epoch in which the device is.
    pub(crate) fn learn_title(&mut self, id: ConversationId, state: &v1::GroupState) -> Result<(), Error> {
        let Some(mut row) = conversations::load(&self.tx, id)? else { return Ok(()) };
        if row.status != ConversationStatus::Active || row.generation.0 != state.generation {
            return Ok(());
        }
        let group = self.group(&row)?;
        if group.epoch().as_u64() != state.epoch {
            return Ok(());
        }
        if let Some(title) = group::read_title(self.provider().crypto(), &group, state) {
            row = Conversation { title, ..row };
            conversations::save(&self.tx, &row)?;
        }
        conversations::set_untitled(&self.tx, id, false)
    }
}
