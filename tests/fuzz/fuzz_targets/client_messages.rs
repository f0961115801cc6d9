//! What clients send to nodes and get back. A message that is decoded is the same after a round trip.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_wire::codec;
use quorate_wire::{Request, Response};

fuzz_target!(|data: &[u8]| {
    let frame = Bytes::copy_from_slice(data);
    if let Ok(request) = codec::decode::<Request>(&frame) {
        let again: Request = codec::decode(&codec::encode(&request)).expect("an encoded request");
        assert_eq!(again, request);
    }
    if let Ok(response) = codec::decode::<Response>(&frame) {
        let again: Response = codec::decode(&codec::encode(&response)).expect("an encoded response");
        assert_eq!(again, response);
    }
});
