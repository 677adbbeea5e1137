//! What the pipeline tells a recorder of metrics and a subscriber of events, by the names that `docs/observability.md`
//! promises. A binary of its own: recorder and subscriber are the process's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use foldgate::{
    BlockRequest, BlockResult, FileLog, MemoryStore, Pipeline, PipelineConfig, TrieStore, Verdict,
    core::{BlockAccessIndex, trie::bulk::StateLoad},
    pipeline::{Begun, BlockError, Failure, RebuiltBal, SkipReason},
    record_log::Options,
};
use foldgate_testing::sim::{Sim, SimBlock, SimSize, load_items};
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

/// Keeps every metric that it is told.
#[derive(Debug, Clone, Default)]
struct Kept {
    counters: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
    gauges: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
    histograms: Arc<Mutex<BTreeMap<String, Arc<Samples>>>>,
}

#[derive(Debug, Default)]
struct Samples(Mutex<Vec<f64>>);

impl HistogramFn for Samples {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

fn name(key: &Key) -> String {
    key.labels().fold(key.name().to_owned(), |mut name, label| {
        write!(name, "{{{}={}}}", label.key(), label.value()).unwrap();
        name
    })
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::clone(self.counters.lock().unwrap().entry(name(key)).or_default()))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::clone(self.gauges.lock().unwrap().entry(name(key)).or_default()))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::clone(self.histograms.lock().unwrap().entry(name(key)).or_default()))
    }
}

impl Kept {
    fn counter(&self, name: &str) -> u64 {
        self.counters.lock().unwrap().get(name).map_or(0, |count| count.load(Ordering::SeqCst))
    }

    fn gauge(&self, name: &str) -> f64 {
        let gauges = self.gauges.lock().unwrap();
        gauges.get(name).map_or(f64::NAN, |value| f64::from_bits(value.load(Ordering::SeqCst)))
    }

    fn samples(&self, name: &str) -> Vec<f64> {
        self.histograms.lock().unwrap().get(name).map_or_else(Vec::new, |samples| samples.0.lock().unwrap().clone())
    }

    fn names(&self) -> BTreeSet<String> {
        let plain = |name: &String| name.split('{').next().unwrap().to_owned();
        let counters: Vec<_> = self.counters.lock().unwrap().keys().map(plain).collect();
        let gauges: Vec<_> = self.gauges.lock().unwrap().keys().map(plain).collect();
        let histograms: Vec<_> = self.histograms.lock().unwrap().keys().map(plain).collect();
        counters.into_iter().chain(gauges).chain(histograms).collect()
    }
}

/// Keeps the names of spans and the messages of events.
#[derive(Debug, Clone, Default)]
struct Heard {
    spans: Arc<Mutex<BTreeSet<String>>>,
    events: Arc<Mutex<Vec<String>>>,
}

struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            write!(self.0, "{value:?}").unwrap();
        }
    }
}

impl Subscriber for Heard {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "foldgate"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.spans.lock().unwrap().insert(span.metadata().name().to_owned());
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = String::new();
        event.record(&mut Message(&mut message));
        self.events.lock().unwrap().push(message);
    }

    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn run<S: TrieStore>(
    pipeline: &Pipeline<S>,
    request: BlockRequest,
    block: &SimBlock,
    falsify: bool,
) -> Result<Verdict, BlockError> {
    let Begun::Started(mut handle) = pipeline.begin(request).unwrap() else { panic!("known already") };
    handle.record(BlockAccessIndex::PRE_EXECUTION, &Default::default()).unwrap();
    for (index, writes) in &block.writes {
        let mut writes = writes.clone();
        if falsify {
            writes.accounts.iter_mut().for_each(|(_, account)| account.balance = Some(Default::default()));
        }
        handle.record(*index, &writes).unwrap();
    }
    let rebuilt_bal = Some(RebuiltBal { hash: block.bal_hash, list: None });
    handle.finish(BlockResult { rebuilt_bal, expected_state_root: None }).wait()
}

#[test]
fn everything_is_told_by_its_documented_name() {
    let (kept, heard) = (Kept::default(), Heard::default());
    metrics::set_global_recorder(kept.clone()).unwrap();
    tracing::subscriber::set_global_default(heard.clone()).unwrap();

    let mut sim = Sim::new(70, SimSize::default());
    let genesis = sim.genesis();
    let store = Arc::new(MemoryStore::new());
    let items = load_items(&genesis.state).into_iter().map(Ok::<_, std::convert::Infallible>);
    store.load(StateLoad::new(items, genesis.facts.block)).unwrap();
    let config = PipelineConfig::default().with_bal_driven(true).with_shadow(true);
    let folder = tempfile::tempdir().unwrap();
    let log = FileLog::open(folder.path(), Options::default()).unwrap();
    let pipeline = Pipeline::open_with_log(store, log, config).unwrap();
    let mut parent = genesis;
    // Three blocks with their lists, one without.
    for listed in [true, true, true, false] {
        let block = sim.child(&parent);
        let request = BlockRequest::new(block.facts);
        let request = if listed { request.with_bal(block.raw.clone()) } else { request };
        let Ok(Verdict::Valid(valid)) = run(&pipeline, request, &block, false) else { panic!("not valid") };
        let timings = valid.timings;
        assert_eq!(timings.confirm, timings.verdict.saturating_sub(timings.execution));
        assert!(timings.verdict >= timings.execution && !timings.fold.is_zero(), "{timings:?}");
        assert_eq!(timings.decode.is_zero(), !listed, "{timings:?}");
        parent = block;
    }
    assert_eq!(kept.gauge("foldgate_unflushed_blocks"), 4.0);
    assert!(kept.gauge("foldgate_unflushed_bytes") > 0.0);
    pipeline.flush().unwrap();
    assert_eq!((kept.gauge("foldgate_unflushed_blocks"), kept.gauge("foldgate_unflushed_bytes")), (0.0, 0.0));
    // One that is invalid, one whose computations part, one that is dropped.
    let mut wrong = sim.child(&parent);
    wrong.facts.expected_state_root = Some(Default::default());
    let request = BlockRequest::new(wrong.facts).with_bal(wrong.raw.clone());
    assert!(matches!(run(&pipeline, request, &wrong, false), Ok(Verdict::Invalid(_))));
    let block = loop {
        let block = sim.child(&parent);
        let changes = |writes: &foldgate::core::StateWrites| {
            writes.accounts.iter().any(|(_, account)| account.balance.is_some_and(|balance| !balance.is_zero()))
        };
        if block.writes.last().is_some_and(|(_, writes)| changes(writes)) {
            break block;
        }
    };
    let request = || BlockRequest::new(block.facts).with_bal(block.raw.clone());
    let ended = run(&pipeline, request(), &block, true);
    assert!(matches!(ended, Err(BlockError::Failed(Failure::Divergence(_)))), "{ended:?}");
    drop(pipeline.begin(request()).unwrap());
    while pipeline.counters().cancelled == 0 {
        std::thread::yield_now();
    }

    // Counters are those of the snapshot.
    let counters = pipeline.counters();
    let told = |name: &str| kept.counter(&format!("foldgate_{name}"));
    assert_eq!((counters.valid, told("valid")), (4, 4));
    assert_eq!((counters.invalid, told("invalid")), (1, 1));
    assert_eq!((counters.failed, told("failed")), (1, 1));
    assert_eq!((counters.cancelled, told("cancelled")), (1, 1));
    assert_eq!((counters.divergences, told("divergences")), (1, 1));
    assert_eq!((counters.shadows, told("shadows")), (5, 5));
    assert_eq!((counters.commits, told("commits")), (4, 4));
    assert_eq!(told("requests"), counters.requests);
    assert_eq!(told("folds_ahead"), counters.folds_ahead);
    assert_eq!(counters.skipped(SkipReason::NoBal), 1);
    assert_eq!(kept.counter("foldgate_skips{reason=no_bal}"), 1);
    // Histograms have one sample for each valid block, and the backlog is empty again.
    for name in ["gate_wait", "resolve", "fold", "execution", "confirm", "verdict"] {
        let samples = kept.samples(&format!("foldgate_{name}_seconds"));
        assert_eq!(samples.len(), 4, "{name}");
        assert!(samples.iter().all(|seconds| (0.0..60.0).contains(seconds)), "{name}: {samples:?}");
    }
    assert_eq!(kept.samples("foldgate_decode_seconds").len(), 3);
    assert!(kept.samples("foldgate_shadow_seconds").len() >= 5);
    assert!(kept.samples("foldgate_hold_to_shadow_seconds").len() >= 4);
    assert!(!kept.samples("foldgate_commit_seconds").is_empty());
    assert_eq!(kept.samples("foldgate_commit_blocks").iter().sum::<f64>(), 4.0);
    assert_eq!(kept.gauge("foldgate_commit_backlog"), 0.0);
    // Warm-ups end when they end, and so do syncs: each valid block has a record, and its becoming the head another.
    drop(pipeline);
    assert!(kept.samples("foldgate_warm_up_seconds").len() >= 3);
    assert_eq!(kept.samples("foldgate_acknowledge_seconds").len(), 4);
    let records = kept.samples("foldgate_log_sync_records");
    assert_eq!(records.iter().sum::<f64>(), 8.0);
    assert_eq!(kept.samples("foldgate_log_sync_seconds").len(), records.len());

    // Spans and events.
    let spans = heard.spans.lock().unwrap().clone();
    for span in ["decode", "warm_up", "fold", "shadow", "hold_to_shadow"] {
        assert!(spans.contains(span), "{span} is not among {spans:?}");
    }
    let events = heard.events.lock().unwrap().clone();
    let heard = |message: &str| events.iter().filter(|event| *event == message).count();
    assert_eq!(["valid", "invalid", "failed", "cancelled", "divergence"].map(heard), [4, 1, 1, 1, 1]);
    assert!(heard("committed") >= 1);

    // What is told is documented.
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/observability.md")).unwrap();
    for name in kept.names() {
        assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/observability.md");
    }
    for name in spans {
        assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/observability.md");
    }
}
