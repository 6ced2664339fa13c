//! What every [`ChunkSource`] must do, for the tests of each implementation.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::format::manifest::ChunkSource;
use crate::format::{ChunkId, NodeId};

/// Runs the whole contract; `known` are some of the source's chunks, and `nodes` some of its nodes.
pub fn chunk_source(source: &dyn ChunkSource, known: &[ChunkId], nodes: &[NodeId]) {
    let absent = ChunkId::of(b"no source has this");
    source.expect(&[known, &[absent]].concat());
    let asked: Vec<ChunkId> = known.iter().rev().chain([&absent]).chain(known).copied().collect();
    every_position(&asked, absent, &mut |each| {
        source.chunks(&asked, &mut |at, chunk| each(at, chunk.map(|chunk| chunk.id())))
    });
    assert!(source.chunk(absent).is_err());
    assert_eq!(source.chunk(known[0]).unwrap().id(), known[0]);
    assert!(source.chunk_at_hand(absent).is_none());
    assert!(source.chunk_at_hand(known[0]).is_none_or(|chunk| chunk.id() == known[0]));
    stops(&mut |each| source.chunks(known, &mut |_, _| each()));
    source.chunks(&[], &mut |_, _| unreachable!("nothing was asked for")).unwrap();

    let absent = NodeId::of(b"no source has this");
    source.expect_nodes(&[nodes, &[absent]].concat());
    let asked: Vec<NodeId> = nodes.iter().rev().chain([&absent]).chain(nodes).copied().collect();
    every_position(&asked, absent, &mut |each| {
        source.nodes(&asked, &mut |at, node| each(at, node.map(|node| NodeId::of(&node.encode()))))
    });
    assert!(source.node(absent).is_err());
    assert_eq!(NodeId::of(&source.node(nodes[0]).unwrap().encode()), nodes[0]);
    stops(&mut |each| source.nodes(nodes, &mut |_, _| each()));
    source.nodes(&[], &mut |_, _| unreachable!("nothing was asked for")).unwrap();
}

type Handed<'a, I> = dyn FnMut(usize, Result<I>) -> Result<()> + 'a;

/// Each position is handed over once, with what was asked for; what is absent is damage, and ends nothing.
fn every_position<I: Copy + PartialEq + std::fmt::Debug>(
    asked: &[I],
    absent: I,
    fetch: &mut dyn FnMut(&mut Handed<'_, I>) -> Result<()>,
) {
    let mut given = BTreeMap::new();
    fetch(&mut |position, id| {
        assert!(given.insert(position, id).is_none(), "{position} twice");
        Ok(())
    })
    .unwrap();
    assert_eq!(given.len(), asked.len(), "every position is handed over");
    for (position, given) in given {
        match given {
            Ok(id) => assert_eq!(id, asked[position]),
            Err(error) => assert!(asked[position] == absent && matches!(error, Error::Damaged { .. }), "{error}"),
        }
    }
}

type Stopping<'a> = dyn FnMut() -> Result<()> + 'a;

/// An error of the caller ends the batch.
fn stops(fetch: &mut dyn FnMut(&mut Stopping<'_>) -> Result<()>) {
    let mut handed = 0;
    let stopped = fetch(&mut || {
        handed += 1;
        Err(Error::Interrupted)
    });
    assert!(matches!(stopped, Err(Error::Interrupted)) && handed == 1, "{stopped:?} after {handed}");
}
