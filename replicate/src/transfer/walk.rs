//! The walk over a snapshot's tree and its parent's: names every record that the receiver may lack.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chunkstore::catalog::Entry;
use chunkstore::format::limits::SEGMENT_BYTES;
use chunkstore::format::manifest::{Leaf, Node, height_for, slot_segments};
use chunkstore::format::{ChunkId, NodeId, Record, RecordId};
use chunkstore::{Error, Progress, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::nodes::{Found, Nodes};
use super::plan::Item;

/// Nodes that are fetched together.
const GROUP_NODES: usize = 64;
/// Candidates that are claimed together: a batch's answer takes a round trip, and its records some megabytes.
const BATCH: usize = 256;
/// Batches that wait to be claimed.
const BATCHES: usize = 4;

/// A record that the receiver may lack.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) id: RecordId,
    pub(super) plain_bytes: u32,
    /// Of a node: its record. Chunks are read on demand.
    pub(super) node: Option<Record>,
    pub(super) is_chunk: bool,
    /// The parent's chunk at the same offset.
    pub(super) like: Option<RecordId>,
}

/// Two nodes in the same place: of the snapshot, and of its parent.
#[derive(Clone, Copy)]
struct Pair {
    new: NodeId,
    /// With its height, which is less where the parent is the smaller image.
    old: Option<(NodeId, u8)>,
    height: u8,
    first_segment: u64,
}

/// Starts the walk. The batches end with it; its result tells whether they are complete.
pub(super) fn start(
    nodes: Nodes,
    item: &Item,
    progress: Arc<Progress>,
) -> (mpsc::Receiver<Vec<Candidate>>, JoinHandle<Result<()>>) {
    let (out, batches) = mpsc::channel(BATCHES);
    let (new, old) = (item.entry.clone(), item.parent.clone());
    progress.set_total(new.virtual_bytes);
    let walk = Walk { nodes, out, batch: Vec::new(), entered: HashSet::new(), progress };
    (batches, tokio::spawn(walk.run(new, old)))
}

struct Walk {
    nodes: Nodes,
    out: mpsc::Sender<Vec<Candidate>>,
    batch: Vec<Candidate>,
    /// Inner nodes that were entered, with their heights: a few nodes, each the child of another in all of its slots,
    /// span an image of any size.
    entered: HashSet<(NodeId, u8)>,
    progress: Arc<Progress>,
}

impl Walk {
    async fn run(mut self, new: Entry, old: Option<Entry>) -> Result<()> {
        let Some(root) = new.root else { return Ok(()) };
        let height = height_for(new.virtual_bytes);
        let mut pairs = vec![Pair { new: root, old: None, height, first_segment: 0 }];
        if let Some(old) = old {
            pairs[0].old = self.old_root(&old, height).await?;
        }
        pairs.retain(Pair::differs);
        // The last is taken first, so that segments come in order and few wait.
        while !pairs.is_empty() {
            self.progress.check()?;
            let group = pairs.split_off(pairs.len().saturating_sub(GROUP_NODES));
            let mut below = self.group(group).await?;
            below.reverse();
            pairs.append(&mut below);
        }
        self.progress.advance(0);
        self.send().await
    }

    /// The parent's tree at the height of the new one: the root itself or, of a taller tree, its first slots.
    async fn old_root(&self, old: &Entry, height: u8) -> Result<Option<(NodeId, u8)>> {
        let Some(mut id) = old.root else { return Ok(None) };
        let mut own = height_for(old.virtual_bytes);
        while own > height {
            let node = self.nodes.known(&[id]).await?.remove(0);
            let Node::Inner(inner) = node else { return Err(wrong_height(id)) };
            match inner.child(0) {
                Some(child) => id = child,
                None => return Ok(None),
            }
            own -= 1;
        }
        Ok(Some((id, own)))
    }

    /// Reads nodes of both trees, names what is new in them, and returns the pairs below that differ, in order.
    async fn group(&mut self, mut group: Vec<Pair>) -> Result<Vec<Pair>> {
        group.sort_by_key(|pair| pair.first_segment);
        let ids: Vec<NodeId> = group.iter().map(|pair| pair.new).collect();
        let olds: Vec<NodeId> = group.iter().filter_map(Pair::old_beside).collect();
        let (new, old) = tokio::try_join!(self.nodes.travelling(&ids), self.nodes.known(&olds))?;
        let mut old: HashMap<NodeId, Node> = olds.into_iter().zip(old).collect();
        let mut below = Vec::new();
        for (pair, found) in group.iter().zip(new) {
            let beside = pair.old_beside().and_then(|id| old.remove(&id).map(|node| (id, node)));
            // Two places of the parent may have the same node.
            if let Some((id, node)) = &beside {
                old.insert(*id, node.clone());
            }
            self.visit(pair, found, beside.map(|(_, node)| node), &mut below).await?;
        }
        Ok(below)
    }

    async fn visit(&mut self, pair: &Pair, found: Found, old: Option<Node>, below: &mut Vec<Pair>) -> Result<()> {
        let Found { node, record } = found;
        if node.height() != pair.height {
            return Err(wrong_height(pair.new));
        }
        let plain_bytes = node.encode().len() as u32;
        self.add(Candidate { id: pair.new.into(), plain_bytes, node: record, is_chunk: false, like: None }).await?;
        match node {
            Node::Inner(inner) => {
                let old = pair.old_children(old)?;
                let mut leaves = HashSet::new();
                for (slot, child) in inner.children() {
                    let first_segment = pair.first_segment + u64::from(*slot) * slot_segments(pair.height);
                    let old = old.get(slot).copied();
                    let child = Pair { new: *child, old, height: pair.height - 1, first_segment };
                    if child.differs() && self.is_new(&child, &mut leaves) {
                        below.push(child);
                    }
                }
            }
            Node::Leaf(leaf) => {
                self.leaf(&leaf, old).await?;
                self.progress.reach((pair.first_segment + 1) * SEGMENT_BYTES as u64);
            }
        }
        Ok(())
    }

    /// Whether a node was not entered yet; a leaf, not below the same node.
    fn is_new(&mut self, child: &Pair, leaves: &mut HashSet<NodeId>) -> bool {
        if child.height == 0 { leaves.insert(child.new) } else { self.entered.insert((child.new, child.height)) }
    }

    async fn leaf(&mut self, new: &Leaf, old: Option<Node>) -> Result<()> {
        let old = match old {
            Some(Node::Leaf(leaf)) => leaf,
            _ => Leaf::default(),
        };
        let known: HashSet<ChunkId> = old.chunks().map(|(_, id, _)| id).collect();
        for (start, id, bytes) in new.chunks().filter(|(_, id, _)| !known.contains(id)) {
            let like = overlapping(&old, start, bytes);
            self.add(Candidate { id: id.into(), plain_bytes: bytes, node: None, is_chunk: true, like }).await?;
        }
        Ok(())
    }

    async fn add(&mut self, candidate: Candidate) -> Result<()> {
        self.batch.push(candidate);
        if self.batch.len() >= BATCH { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        // The task that takes the batches has failed, and reports why.
        self.out.send(batch).await.map_err(|_| Error::Interrupted)
    }
}

impl Pair {
    fn differs(&self) -> bool {
        self.old != Some((self.new, self.height))
    }

    /// The parent's node of the same height, if there is one.
    fn old_beside(&self) -> Option<NodeId> {
        self.old.filter(|(_, height)| *height == self.height).map(|(id, _)| id)
    }

    /// The parent's nodes below: its node's children, or the node itself in the first slot if it is lower.
    fn old_children(&self, beside: Option<Node>) -> Result<HashMap<u8, (NodeId, u8)>> {
        match (self.old, beside) {
            (Some((id, height)), None) if height < self.height => Ok(HashMap::from([(0, (id, height))])),
            (Some(_), Some(Node::Inner(inner))) => {
                Ok(inner.children().iter().map(|(slot, id)| (*slot, (*id, self.height - 1))).collect())
            }
            (Some((id, _)), _) => Err(wrong_height(id)),
            (None, _) => Ok(HashMap::new()),
        }
    }
}

fn wrong_height(id: NodeId) -> Error {
    Error::damaged(format!("manifest node {id}"), "it has another height than its place in the tree")
}

/// The chunk of a leaf that shares most bytes' offsets with this range.
fn overlapping(leaf: &Leaf, start: usize, bytes: u32) -> Option<RecordId> {
    let end = start + bytes as usize;
    let overlap = |at: usize, bytes: u32| (at + bytes as usize).min(end).saturating_sub(at.max(start));
    let best = leaf.chunks().max_by_key(|(at, _, bytes)| overlap(*at, *bytes))?;
    (overlap(best.0, best.2) > 0).then(|| best.1.into())
}
