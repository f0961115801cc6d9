//! Bytes that come from strangers are decoded or refused, never more: each decoder against noise and damaged messages.
//! The fuzz targets in tests/fuzz go deeper; these run with every test.

use bytes::Bytes;
use proptest::prelude::*;
use quorate_wire::codec::{self, Blob};
use quorate_wire::ids::{LayoutVersion, OpId};
use quorate_wire::{Key, NotApplied, Reply, Request, RequestBody, Response, Write, Written};

fn request(key: Vec<u8>, value: Option<Vec<u8>>) -> Request {
    let write = Write {
        key: Key::plain(key),
        value: value.map(|value| Blob(value.into())),
        context: Some(Blob::copy_from(b"context")),
        op_id: OpId(7),
        first_sent_ms: None,
        w: None,
        strict: true,
        explain: false,
    };
    Request { layout: LayoutVersion(3), request_id: 1, body: RequestBody::Write(write) }
}

fn response(context: Vec<u8>, failed: bool) -> Response {
    let written = Written {
        context: Blob(context.into()),
        siblings: 1,
        replaced: 0,
        synced: true,
        context_large: false,
        quorum: Default::default(),
        evidence: None,
    };
    let body = if failed { Err(NotApplied::EmptyKey.into()) } else { Ok(Reply::Written(written)) };
    Response { table: None, body }
}

fn damaged(message: &Bytes, at: prop::sample::Index, by: u8, cut: bool) -> Bytes {
    let at = at.index(message.len());
    let mut bytes = message.to_vec();
    bytes[at] ^= by;
    if cut {
        bytes.truncate(at);
    }
    bytes.into()
}

proptest! {
    #[test]
    fn noise_is_no_message(bytes: Vec<u8>) {
        let mut bytes = bytes;
        bytes.insert(0, codec::CODEC_VERSION);
        let bytes = Bytes::from(bytes);
        let _ = codec::decode::<Request>(&bytes);
        let _ = codec::decode::<Response>(&bytes);
    }

    #[test]
    fn messages_come_back_and_damaged_ones_do_no_harm(
        bytes: Vec<u8>, other: Option<Vec<u8>>, failed: bool, at: prop::sample::Index, by: u8, cut: bool,
    ) {
        let request = request(bytes.clone(), other);
        let encoded = codec::encode(&request);
        prop_assert_eq!(&codec::decode::<Request>(&encoded).expect("a request"), &request);
        let _ = codec::decode::<Request>(&damaged(&encoded, at, by, cut));

        let response = response(bytes, failed);
        let encoded = codec::encode(&response);
        prop_assert_eq!(&codec::decode::<Response>(&encoded).expect("a response"), &response);
        let _ = codec::decode::<Response>(&damaged(&encoded, at, by, cut));
        prop_assert!(codec::decode::<Response>(&encoded.slice(..encoded.len() - 1)).is_err(), "cut short");
    }
}
