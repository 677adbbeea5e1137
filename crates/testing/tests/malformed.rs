//! Malformed input of each kind: a typed error that names the place, never a panic, and no memory for declared sizes.
//!
//! Invariant: what is malformed here is made here, or cut from published data, so most of it runs without the data.

use std::{fs, io::Write, ops::ControlFlow, path::Path};

use foldgate_testing::{
    ReadError, archive,
    bal_vectors::read_mainnet_stats,
    chains::{ChainReader, MAX_BLOCK_BYTES, read_genesis, read_head_state},
    fixtures::{parse_tests, read_tests, visit_files},
    fixtures_or_skip,
    trie_vectors::read_trie_vectors,
    witness::read_witness,
};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// A minimal test with one block, `fields` of which can be replaced by text.
fn test_json(replace: &[(&str, &str)]) -> String {
    let zero = format!("0x{}", "00".repeat(32));
    let header = format!(
        r#"{{"hash":"{zero}","parentHash":"{zero}","uncleHash":"{zero}","coinbase":"0x{}","stateRoot":"{zero}",
        "transactionsTrie":"{zero}","receiptTrie":"{zero}","bloom":"0x{}","difficulty":"0x","number":"0x00","gasLimit":"0x01",
        "gasUsed":"0x0000000000000000000001","timestamp":"12","extraData":"0x","mixHash":"{zero}","nonce":"0x0000000000000000"}}"#,
        "00".repeat(20),
        "00".repeat(256)
    );
    let account = r#"{"nonce":"0x01","balance":"0x00","code":"0x","storage":{"0x00":"0x00","0x01":"0x0002"}}"#;
    let mut text = format!(
        r#"{{"first":{{"network":"Cancun","sealEngine":"NoProof","pre":{{"0x{}":{account}}},"genesisBlockHeader":{header},
        "blocks":[{{"rlp":"0xc0","blockHeader":{header}}}],"lastblockhash":"{zero}"}}}}"#,
        "11".repeat(20)
    );
    for (from, to) in replace {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    text
}

/// The test and the field that an error of JSON names.
fn json_place(error: ReadError) -> (Option<String>, String) {
    match error {
        ReadError::Json { test, field, .. } => (test, field),
        other => panic!("{other}"),
    }
}

#[test]
fn numbers_are_read_in_all_their_forms() {
    let tests = parse_tests("memory", test_json(&[]).as_bytes()).unwrap();
    let header = &tests[0].genesis_header;
    assert_eq!((header.difficulty.to::<u64>(), header.gas_used, header.timestamp), (0, 1, 12));
    let account = tests[0].pre.accounts.values().next().unwrap();
    assert_eq!((account.nonce, account.storage.len()), (1, 1), "a zero slot is no slot");
}

#[test]
fn a_bad_field_is_named_with_its_test() {
    let cases = [
        (r#""gasUsed":"0x0000000000000000000001""#, r#""gasUsed":"0x1_0""#, "genesisBlockHeader.gasUsed"),
        (r#""gasUsed":"0x0000000000000000000001""#, r#""gasUsed":"0x10000000000000000""#, "genesisBlockHeader.gasUsed"),
        (r#""gasUsed":"0x0000000000000000000001""#, r#""gasUsed":"0x:bigint 0x1""#, "genesisBlockHeader.gasUsed"),
        (r#""gasUsed":"0x0000000000000000000001""#, r#""gasUsed":-1"#, "genesisBlockHeader.gasUsed"),
        (r#""rlp":"0xc0""#, r#""rlp":"0xc""#, "blocks[0].rlp"),
        (r#""rlp":"0xc0","#, "", "blocks[0]"),
        (r#""balance":"0x00""#, r#""balance":"""#, "pre.0x1111111111111111111111111111111111111111.balance"),
        (r#""0x00":"0x00","#, r#""0x01":"0x00","#, "pre.0x1111111111111111111111111111111111111111.storage"),
        (r#""network":"Cancun","#, "", "."),
        (
            r#""rlp":"0xc0""#,
            r#""rlp":"0xc0","blockAccessList":[{"address":"0x"}]"#,
            "blocks[0].blockAccessList[0].address",
        ),
    ];
    for (from, to, expected) in cases {
        let error = parse_tests("memory", test_json(&[(from, to)]).as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("memory: test `first`: field"), "{error}");
        let (test, field) = json_place(error);
        assert_eq!((test.as_deref(), field.as_str()), (Some("first"), expected), "{to}");
    }
}

#[test]
fn what_is_no_json_or_no_map_of_tests_is_refused() {
    let whole = test_json(&[]);
    for length in 0..whole.len() {
        json_place(parse_tests("memory", &whole.as_bytes()[..length]).unwrap_err());
    }
    for text in ["[]", "7", "\"text\"", "{\"a\":1}", "{} x", "\u{0}", "{\"a\":{},\"a\":{}}"] {
        json_place(parse_tests("memory", text.as_bytes()).unwrap_err());
    }
    // Deep nesting ends in the parser's limit, not in the stack's.
    json_place(parse_tests("memory", "[".repeat(1_000_000).as_bytes()).unwrap_err());
    let twice = format!("{}{}", whole.trim_end_matches('}'), "}},\"first\":{}}");
    json_place(parse_tests("memory", twice.as_bytes()).unwrap_err());
}

#[test]
fn a_folders_other_files_are_skipped_and_a_bad_one_does_not_hide_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put(".meta/index.json", "{}{}");
    put("index.json", "no json");
    put("README.md", "no json");
    put("b/2.json", &test_json(&[]));
    put("b/1.json", "{\"broken\":{}}");
    put("a/3.json", &test_json(&[]));
    let mut order = Vec::new();
    visit_files(dir.path(), &mut |file| {
        order.push(file.map(|file| file.name).map_err(|error| error.to_string()));
        ControlFlow::Continue(())
    });
    assert_eq!(order.len(), 3, "{order:?}");
    assert!(order[0].as_ref().unwrap().ends_with("a/3.json"));
    assert!(order[1].as_ref().unwrap_err().contains("b/1.json: test `broken`: field"));
    assert!(order[2].as_ref().unwrap().ends_with("b/2.json"));
    assert!(matches!(read_tests(dir.path()), Err(ReadError::Json { .. })));
    assert!(matches!(read_tests(&dir.path().join("nowhere")), Err(ReadError::Io { .. })));
}

fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn members_of(path: &Path, limit: u64) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
    let mut members = Vec::new();
    archive::visit_members(path, limit, &mut |name, content| {
        members.push((name, content));
        ControlFlow::Continue(())
    })?;
    Ok(members)
}

#[test]
fn archives_cut_anywhere_end_in_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/x.json", "folder".repeat(30));
    let plain = tar_of(&[(&long, test_json(&[]).as_bytes()), ("y.json", &[b' '; 5000])]);
    let zst = compress_to_vec(plain.as_slice(), CompressionLevel::Fastest);
    let path = dir.path().join("a.tar.zst");
    fs::write(&path, &zst).unwrap();
    let members = members_of(&path, 1 << 20).unwrap();
    assert_eq!((members.len(), &members[0].0, members[1].1.len()), (2, &long, 5000));
    // Two frames one after the other are one stream, also when the second is cut off.
    let (left, right) = plain.split_at(700);
    let two =
        [compress_to_vec(left, CompressionLevel::Fastest), compress_to_vec(right, CompressionLevel::Fastest)].concat();
    fs::write(&path, &two).unwrap();
    assert_eq!(members_of(&path, 1 << 20).unwrap(), members);
    for whole in [&zst, &two] {
        for length in (1..whole.len()).step_by(11).chain(whole.len() - 8..whole.len()) {
            fs::write(&path, &whole[..length]).unwrap();
            let outcome = members_of(&path, 1 << 20);
            // Cut between the frames, the tar archive is what is cut off.
            assert!(
                matches!(
                    outcome,
                    Err(ReadError::Compression { .. } | ReadError::Truncated { .. } | ReadError::Checksum { .. })
                ),
                "{length}: {outcome:?}"
            );
        }
    }
}

#[test]
fn a_flipped_byte_never_passes_unseen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar.zst");
    let zst = compress_to_vec(tar_of(&[("y.json", test_json(&[]).as_bytes())]).as_slice(), CompressionLevel::Fastest);
    fs::write(&path, &zst).unwrap();
    let members = members_of(&path, 1 << 20).unwrap();
    for place in (0..20).chain((20..zst.len()).step_by(5)) {
        let mut bad = zst.clone();
        bad[place] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        if let Ok(read) = members_of(&path, 1 << 20) {
            assert_eq!(read, members, "byte {place}");
        }
    }
}

#[test]
fn huge_declared_sizes_take_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    // A tar member that declares 8 GiB and has one block.
    let mut header = tar::Header::new_gnu();
    header.set_path("x.json").unwrap();
    header.set_size(1 << 33);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([b'{'; 512]);
    let path = dir.path().join("a.tar");
    fs::write(&path, &bytes).unwrap();
    let error = members_of(&path, 1 << 20).unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { got, expected: 0x10_0000, .. } if got == 1 << 33), "{error}");
    assert!(error.to_string().contains("a.tar!x.json"), "{error}");
    // The same within the limit, and so cut off.
    let error = members_of(&path, 1 << 40).unwrap_err();
    assert!(matches!(error, ReadError::Truncated { got: 512, expected, .. } if expected == 1 << 33), "{error}");

    // A long name of 8 GiB.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 33);
    header.set_cksum();
    fs::write(&path, header.as_bytes()).unwrap();
    let error = members_of(&path, 1 << 40).unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { what: "long name of a member", .. }), "{error}");

    // A zstd window of 2^37: magic number, no flags, window descriptor.
    let path = dir.path().join("a.tar.zst");
    fs::write(&path, [0x28, 0xb5, 0x2f, 0xfd, 0x00, 27 << 3, 1, 0, 0]).unwrap();
    let error = members_of(&path, 1 << 20).unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { what: "the zstd window", got, .. } if got == 1 << 37), "{error}");
    // A single segment that declares 2^40 bytes of content.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0];
    fs::write(&path, frame).unwrap();
    let error = members_of(&path, 1 << 20).unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { got, .. } if got == 1 << 40), "{error}");

    // Gzip that grows beyond the limit.
    let path = dir.path().join("w.json.gz");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&vec![b' '; 1 << 20]).unwrap();
    let gzip = gzip.finish().unwrap();
    fs::write(&path, &gzip).unwrap();
    let error = archive::read_gzip(&path, "the witness", 1000).unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { got: 1001, expected: 1000, .. }), "{error}");
    fs::write(&path, &gzip[..gzip.len() - 9]).unwrap();
    assert!(matches!(read_witness(&path), Err(ReadError::Compression { .. })));
}

fn chain_of(bytes: &[u8]) -> Result<usize, ReadError> {
    let mut reader = ChainReader::new(bytes, "chain.rlp".to_owned());
    let blocks = reader.by_ref().collect::<Result<Vec<_>, _>>().map(|blocks| blocks.len());
    assert!(reader.next().is_none(), "the stream ends after an error");
    blocks
}

#[test]
fn chains_that_are_no_blocks_are_refused() {
    assert_eq!(chain_of(&[]).unwrap(), 0);
    let cases: [&[u8]; 6] = [&[0x00], &[0x80], &[0xc0], &[0xf8, 0x01, 0x00], &[0xf9, 0x00, 0xff], &[0xc1, 0xc0]];
    for bytes in cases {
        let error = chain_of(bytes).unwrap_err();
        assert!(matches!(error, ReadError::Rlp { what: "block", index: 0, offset: 0, .. }), "{error}");
    }
    let error = chain_of(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { got: u64::MAX, expected: MAX_BLOCK_BYTES, .. }), "{error}");
    let error = chain_of(&[0xfa, 0xff]).unwrap_err();
    assert!(matches!(error, ReadError::Truncated { got: 2, expected: 4, .. }), "{error}");
    let error = chain_of(&[0xf9, 0x04, 0x00, 0x01]).unwrap_err();
    assert!(matches!(error, ReadError::Truncated { got: 4, expected: 1027, .. }), "{error}");
}

#[test]
fn a_chain_cut_off_names_block_and_byte() {
    let path = fixtures_or_skip!("cut-off chain", "chains/execution-apis-54/chain.rlp");
    let whole = fs::read(path).unwrap();
    let ends: Vec<usize> = ChainReader::new(whole.as_slice(), "chain.rlp".to_owned())
        .map(|block| block.map(|block| block.offset as usize + block.rlp.len()).unwrap())
        .collect();
    for length in (0..whole.len()).step_by(97) {
        let complete = ends.iter().filter(|end| **end <= length).count();
        let start = if complete == 0 { 0 } else { ends[complete - 1] };
        let outcome = chain_of(&whole[..length]);
        if start == length {
            assert_eq!(outcome.unwrap(), complete);
        } else {
            let error = outcome.unwrap_err();
            assert!(matches!(error, ReadError::Truncated { .. }), "{error}");
            assert!(
                error.to_string().starts_with(&format!("chain.rlp: block {complete} at byte {start}: ")),
                "{error}"
            );
        }
    }
    // Damage within the third block.
    let mut bad = whole.clone();
    bad[ends[1] + 4] ^= 0x40;
    assert!(matches!(chain_of(&bad), Err(ReadError::Rlp { index: 2, offset, .. }) if offset as usize == ends[1]));
}

#[test]
fn single_files_with_faults_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.json");
    let put = |text: &str| fs::write(&path, text).unwrap();
    put(r#"{"config":{},"alloc":{"0x1111111111111111111111111111111111111111":{"balance":"1x"}}}"#);
    let (_, field) = json_place(read_genesis(&path).unwrap_err());
    assert_eq!(field, "alloc.0x1111111111111111111111111111111111111111.balance");
    let account = |code: &str| {
        let (zero, address) = ("00".repeat(32), "11".repeat(20));
        put(&format!(
            r#"{{"root":"{zero}","accounts":{{"0x{address}":{{"balance":"1","nonce":0,"root":"0x{zero}","codeHash":"0x{zero}",{code}}}}}}}"#
        ));
    };
    account(r#""code":"0x00""#);
    assert!(matches!(read_head_state(&path), Err(ReadError::Mismatch { what: "the code's hash", .. })));
    account(&format!(r#""storage":{{"0x{}":"xy"}}"#, "22".repeat(32)));
    let (_, field) = json_place(read_head_state(&path).unwrap_err());
    assert_eq!(field, format!("accounts.0x{}.storage.0x{}", "11".repeat(20), "22".repeat(32)));
    put(r#"{"v":{"in":[["0x0","a"]],"root":"0x00"}}"#);
    let (test, field) = json_place(read_trie_vectors(&path).unwrap_err());
    assert_eq!((test.as_deref(), field.starts_with("in")), (Some("v"), true), "{field}");
    put("block,bytes\n1,2\n");
    assert!(matches!(read_mainnet_stats(&path), Err(ReadError::Table { line: 1, column: "bytes_canonical", .. })));
    put(r#"{"chainId":1}"#);
    json_place(read_witness(&path).unwrap_err());
}

#[test]
fn a_witness_that_contradicts_itself_is_refused() {
    let path = fixtures_or_skip!("altered witness", "mainnet-witness/mainnet-22615247.json.gz");
    let text = String::from_utf8(archive::read_gzip(&path, "the witness", 1 << 24).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("w.json");
    for (field, what) in [
        ("\"blockHash\"", "the hash of `block`"),
        ("\"stateRoot\"", "the state root in `block`"),
        ("\"parentStateRoot\"", "the state root in the last of `witness.headers`"),
        ("\"blockAccessListHash\"", "the hash of `blockAccessList`"),
    ] {
        let start = text.find(field).unwrap() + field.len();
        let digit = start + text[start..].find("0x").unwrap() + 2;
        let mut altered = text.clone();
        let other = if altered[digit..].starts_with('0') { "1" } else { "0" };
        altered.replace_range(digit..=digit, other);
        fs::write(&copy, altered).unwrap();
        let error = read_witness(&copy).unwrap_err();
        assert!(matches!(error, ReadError::Mismatch { what: found, .. } if found == what), "{field}: {error}");
    }
}
