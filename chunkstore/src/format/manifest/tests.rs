//! Nodes: golden bytes and hostile ones. Trees: building, walking, comparing.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::error::{Error, Result};
use crate::format::chunk::Chunk;
use crate::format::id::{ChunkId, NodeId};
use crate::format::manifest::chunk_source::ChunkSource;

#[derive(Default)]
struct Nodes(HashMap<NodeId, Vec<u8>>);

/// Nodes that count how often they are asked.
struct Counted<'a> {
    nodes: &'a Nodes,
    requests: AtomicUsize,
}

impl ChunkSource for Counted<'_> {
    fn chunks(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        self.nodes.chunks(ids, each)
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.nodes.node(id)
    }

    fn nodes(&self, ids: &[NodeId], each: &mut dyn FnMut(usize, Result<Node>) -> Result<()>) -> Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.nodes.nodes(ids, each)
    }
}

impl Nodes {
    fn put(&mut self, node: &Node) -> NodeId {
        let encoding = node.encode();
        let id = NodeId::of(&encoding);
        self.0.insert(id, encoding);
        id
    }

    /// A tree with a one-chunk leaf in each of these segments.
    fn tree(&mut self, leaves: &BTreeMap<u64, u8>, virtual_bytes: u64) -> Option<NodeId> {
        let mut assembler = Assembler::default();
        for (segment, content) in leaves {
            let leaf = self.put(&Node::Leaf(leaf(*content)));
            let put = &mut |node: Node, _| Ok::<_, Infallible>(self.put(&node));
            assembler.push(*segment, leaf, put).unwrap();
        }
        assembler.finish(virtual_bytes, &mut |node, _| Ok::<_, Infallible>(self.put(&node))).unwrap()
    }
}

impl ChunkSource for Nodes {
    fn chunks(&self, _: &[ChunkId], _: &mut dyn FnMut(usize, Result<Chunk>) -> Result<()>) -> Result<()> {
        unreachable!("only nodes are read")
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        Node::verify(id, self.0.get(&id).ok_or_else(|| Error::not_found("node"))?)
    }
}

fn leaf(content: u8) -> Leaf {
    Leaf::new(vec![Entry::Chunk { id: ChunkId::of(&[content]), bytes: 1 }]).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_nodes() {
    let id = ChunkId::from_bytes([0xab; 32]);
    let entries = vec![Entry::Zero { bytes: 8192 }, Entry::Chunk { id, bytes: 70_000 }];
    let node = Node::Leaf(Leaf::new(entries).unwrap());
    assert_eq!(hex(&node.encode()), format!("01000200{}{}{}", "00200080", "70110100", "ab".repeat(32)));
    assert_eq!(NodeId::of(&node.encode()).to_string(), GOLDEN_LEAF_ID);
    let inner =
        Node::Inner(Inner::new(1, vec![(0, NodeId::from_bytes([1; 32])), (9, NodeId::from_bytes([2; 32]))]).unwrap());
    let bitmap = format!("0102{}", "00".repeat(30));
    assert_eq!(hex(&inner.encode()), format!("0201{bitmap}{}{}", "01".repeat(32), "02".repeat(32)));
}

const GOLDEN_LEAF_ID: &str = "fce5d94d64fa5c38b0e5187a574db6b87115b5f23deb1e3e1f42949426ce3262";

#[test]
fn hostile_nodes_are_errors() {
    let chunk = |bytes| Entry::Chunk { id: ChunkId::of(b"x"), bytes };
    let bad: &[Vec<Entry>] = &[
        vec![],
        vec![Entry::Zero { bytes: 4096 }],
        vec![chunk(0)],
        vec![chunk(1), Entry::Zero { bytes: 4096 }],
        vec![Entry::Zero { bytes: 4096 }, Entry::Zero { bytes: 4096 }, chunk(1)],
        vec![Entry::Zero { bytes: 100 }, chunk(1)],
        vec![chunk(u32::MAX)],
        vec![chunk(1 << 20); 5],
    ];
    for entries in bad {
        assert!(Leaf::new(entries.clone()).is_err(), "{entries:?}");
    }
    let good = Node::Leaf(leaf(1)).encode();
    for len in 0..good.len() {
        assert!(Node::decode(&good[..len]).is_err());
    }
    let id = NodeId::of(&good);
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Node::verify(id, &flipped).is_err());
        let _ = Node::decode(&flipped);
    }
    for hostile in [&[1, 0, 255, 255][..], &[2], &[2, 1], &[9], &[2; 34], &[1, 0, 0, 0]] {
        assert!(Node::decode(hostile).is_err(), "{hostile:?}");
    }
}

#[test]
fn heights() {
    let segment = SEGMENT_BYTES as u64;
    for (bytes, height) in
        [(0, 0), (1, 0), (segment, 0), (segment + 1, 1), (256 * segment, 1), (256 * segment + 1, 2), (8 << 40, 3)]
    {
        assert_eq!(height_for(bytes), height, "{bytes}");
    }
    assert!(height_for(crate::format::limits::IMAGE_BYTES_MAX) <= crate::format::limits::HEIGHT_MAX);
}

#[test]
fn leaves_in_order_are_read_together_and_a_damaged_one_fails_alone() {
    let mut nodes = Nodes::default();
    let leaves: BTreeMap<u64, u8> = (0..250).map(|at| (at, at as u8)).collect();
    let root = nodes.tree(&leaves, 256 * SEGMENT_BYTES as u64);
    let damaged = NodeId::of(&Node::Leaf(leaf(77)).encode());
    nodes.0.insert(damaged, b"damaged".to_vec());
    let counted = Counted { nodes: &nodes, requests: AtomicUsize::new(0) };
    let reader = LeafReader::new(&counted, root, 256 * SEGMENT_BYTES as u64);
    for at in 0..250 {
        let read = reader.leaf(at);
        assert_eq!(read.is_err(), at == 77, "{at}");
        assert!(read.is_err() || read.unwrap().unwrap().1 == leaf(at as u8), "{at}");
    }
    assert!(counted.requests.load(Ordering::Relaxed) < 20, "{:?}", counted.requests);
    let scattered = LeafReader::new(&counted, root, 256 * SEGMENT_BYTES as u64);
    let before = counted.requests.load(Ordering::Relaxed);
    [200, 100, 5, 150].into_iter().for_each(|at| assert!(scattered.leaf(at).unwrap().is_some()));
    assert!(scattered.ahead.lock().leaves.iter().all(HashMap::is_empty), "nothing is read in vain");
    assert_eq!(counted.requests.load(Ordering::Relaxed), before + 5);
}

fn trees() -> impl Strategy<Value = (BTreeMap<u64, u8>, u64)> {
    let segment = prop_oneof![0..4u64, 250..260u64, 0..70_000u64];
    (prop::collection::btree_map(segment, 0..3u8, 0..12), 0..3u64).prop_map(|(leaves, more)| {
        let segments = leaves.keys().max().map_or(1, |last| last + 1) + more * 300;
        (leaves, segments * SEGMENT_BYTES as u64)
    })
}

proptest! {
    #[test]
    fn a_tree_gives_back_its_leaves((leaves, virtual_bytes) in trees()) {
        let mut nodes = Nodes::default();
        let root = nodes.tree(&leaves, virtual_bytes);
        let mut walked = BTreeMap::new();
        walk(&nodes, root, virtual_bytes, &mut |segment| {
            walked.insert(segment.number, segment.leaf);
            Ok(())
        }).unwrap();
        let expected: BTreeMap<_, _> =
            leaves.iter().map(|(at, content)| (*at, NodeId::of(&Node::Leaf(leaf(*content)).encode()))).collect();
        prop_assert_eq!(&walked, &expected);
        let reader = LeafReader::new(&nodes, root, virtual_bytes);
        for at in leaves.keys().flat_map(|at| [at.saturating_sub(1), *at, at + 1, at + 256, at + 65_536]) {
            prop_assert_eq!(reader.leaf(at).unwrap().map(|leaf| leaf.0), expected.get(&at).copied());
            prop_assert_eq!(reader.next_leaf(at).unwrap(), leaves.range(at..).next().map(|(at, _)| *at));
        }
        let reader = LeafReader::new(&nodes, root, virtual_bytes);
        for at in 0..300 {
            let expected = leaves.get(&at).map(|content| leaf(*content));
            prop_assert_eq!(reader.leaf(at).unwrap().map(|leaf| leaf.1), expected, "in order");
        }
    }

    #[test]
    fn diff_finds_exactly_what_differs((a, bytes_a) in trees(), (b, bytes_b) in trees()) {
        let mut nodes = Nodes::default();
        let (root_a, root_b) = (nodes.tree(&a, bytes_a), nodes.tree(&b, bytes_b));
        let mut found = Vec::new();
        diff(&nodes, (root_a, bytes_a), (root_b, bytes_b), &mut |segment, _, _| {
            found.push(segment);
            Ok(())
        }).unwrap();
        let mut expected: Vec<u64> = a.keys().chain(b.keys()).copied().filter(|at| a.get(at) != b.get(at)).collect();
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn grafting_is_building((a, bytes_a) in trees(), (changes, bytes_b) in trees(), zeros in prop::collection::vec(0..70_000u64, 0..3)) {
        let mut nodes = Nodes::default();
        let root = nodes.tree(&a, bytes_a);
        let segments = bytes_b.div_ceil(SEGMENT_BYTES as u64);
        let touched: BTreeMap<u64, Option<u8>> =
            zeros.into_iter().map(|at| (at, None)).chain(changes.iter().map(|(at, content)| (*at, Some(*content)))).collect();
        let mut expected = a;
        for (at, content) in &touched {
            expected.remove(at);
            expected.extend(content.map(|content| (*at, content)));
        }
        expected.retain(|at, _| *at < segments);
        let expected = nodes.tree(&expected, bytes_b);

        let reader = LeafReader::new(&nodes, root, bytes_a);
        let mut pushes = Vec::new();
        let mut next = 0;
        for (at, content) in touched.iter().filter(|(at, _)| **at < segments) {
            reader.subtrees(&(next..*at), &mut |height, number, id| { pushes.push((height, number, id)); Ok(()) }).unwrap();
            pushes.extend(content.map(|content| (0, *at, NodeId::of(&Node::Leaf(leaf(content)).encode()))));
            next = at + 1;
        }
        reader.subtrees(&(next..segments), &mut |height, number, id| { pushes.push((height, number, id)); Ok(()) }).unwrap();
        let mut assembler = Assembler::default();
        let mut put = |node: Node, _| Ok::<_, Infallible>(nodes.put(&node));
        for (height, number, id) in pushes {
            assembler.push_subtree(height, number, id, &mut put).unwrap();
        }
        prop_assert_eq!(assembler.finish(bytes_b, &mut put).unwrap(), expected);
    }
}
