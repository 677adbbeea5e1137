//! Nodes are what was written, freed memory is used again and accounted for, and threads never get the same memory.

use super::*;

fn leaf_only(epoch: u32) -> NodePlan<'static> {
    let masks = Masks { state: 3, branch: 0, opaque: 0 };
    NodePlan { epoch, masks, blinded: false, references_at: 5, linked: 0, links: &[] }
}

#[test]
fn nodes_of_every_length_keep_what_was_written() {
    let pool = Arc::new(Pool::new());
    let mut writer = Writer::new(&pool);
    let mut nodes: Vec<(NodeRef, usize, u8, Vec<Link>)> = Vec::new();
    for round in 0..40u32 {
        for length in (5..=583).step_by(7) {
            let fill = (length as u32 + round) as u8;
            let links: Vec<_> = nodes.iter().rev().take(2).map(|(node, ..)| Link { node: *node, age: fill }).collect();
            let linked = if links.len() == 2 { 0b101 } else { 0 };
            let plan = NodePlan { linked, links: &links[..if linked == 0 { 0 } else { 2 }], ..leaf_only(round) };
            let node = writer.node(&plan, length, |row| row.fill(fill));
            nodes.push((node, length, fill, links));
        }
    }
    for (node, length, fill, links) in &nodes {
        let view = pool.node(*node);
        assert!(view.row().len() == *length && view.row().iter().all(|byte| byte == fill));
        if links.len() == 2 {
            assert_eq!((view.link(0), view.link(1), view.link(2)), (links[0].node, NodeRef::UNLOADED, links[1].node));
            assert_eq!(view.link_with_age(2).age, *fill);
        }
    }
}

#[test]
fn freed_memory_is_used_again_and_accounted_for() {
    let pool = Arc::new(Pool::new());
    let write = |epoch| {
        let mut writer = Writer::new(&pool);
        (0..10_000).map(|at| writer.node(&leaf_only(epoch), 50 + at % 400, |row| row.fill(1))).collect::<Vec<_>>()
    };
    let first = write(1);
    let used = pool.used_bytes();
    assert!(used > 10_000 * 200);
    pool.free(&first);
    assert_eq!(pool.used_bytes(), 0);
    for epoch in 2..20 {
        let nodes = write(epoch);
        assert_eq!(pool.used_bytes(), used, "no more memory than the first time");
        pool.free(&nodes);
    }
    assert!(pool.free.lock().chunks <= 3);
}

#[test]
fn what_is_reserved_is_there() {
    let pool = Arc::new(Pool::new());
    pool.reserve(5 << 20);
    assert_eq!((pool.free.lock().chunks, pool.used_bytes()), (3, 0));
    pool.reserve(5 << 20);
    assert_eq!(pool.free.lock().chunks, 3);
    let mut writer = Writer::new(&pool);
    let nodes: Vec<_> = (0..8000).map(|_| writer.node(&leaf_only(1), 500, |row| row.fill(1))).collect();
    assert_eq!(pool.free.lock().chunks, 3);
    drop(writer);
    pool.free(&nodes);
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn a_tree_is_freed_with_all_that_hangs_on_it() {
    let pool = Arc::new(Pool::new());
    let mut writer = Writer::new(&pool);
    let leaves = [0, 1].map(|epoch| writer.node(&leaf_only(epoch), 70, |_| ()));
    let links = [leaves[0], NodeRef::ABSENT, leaves[1]].map(|node| Link { node, age: 0 });
    let plan = NodePlan { linked: 0b111, links: &links, ..leaf_only(2) };
    let top = writer.node(&plan, 100, |_| ());
    drop(writer);
    pool.free_tree(top);
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn threads_never_get_the_same_memory() {
    let pool = Arc::new(Pool::new());
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let pool = &pool;
            scope.spawn(move || {
                let mut kept: Vec<NodeRef> = Vec::new();
                for round in 0..50 {
                    let mut writer = Writer::new(pool);
                    let nodes: Vec<_> =
                        (0..200).map(|at| writer.node(&leaf_only(round), 40 + at, |row| row.fill(thread))).collect();
                    drop(writer);
                    pool.free(&std::mem::replace(&mut kept, nodes));
                    for node in &kept {
                        assert!(pool.node(*node).row().iter().all(|byte| *byte == thread));
                    }
                }
            });
        }
    });
}
