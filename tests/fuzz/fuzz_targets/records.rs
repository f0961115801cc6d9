//! Records as they come from a disk or a peer. What is decoded is the same after a round trip, and merges with itself.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_core::record::Record;

fuzz_target!(|data: &[u8]| {
    if let Ok(record) = Record::decode(&Bytes::copy_from_slice(data)) {
        let again = Record::decode(&record.encode()).expect("an encoded record");
        assert_eq!(again, record);
        let mut merged = record.clone();
        merged.merge(&again, &|_| false);
        assert_eq!(merged, record, "a merge with itself changes nothing");
    }
});
