//! Contexts as clients send them back. None opens that no node has issued; the inside of one, when it is opened, is the same after it was
//! sealed again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_wire::codec;
use quorate_wire::ids::ClusterId;
use quorate_core::context_keys::{ContextKeys, taken_apart};
use quorate_core::version::Context;

const CLUSTER: ClusterId = ClusterId(1);
const KEY: &[u8] = b"key";

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let keys = ContextKeys::first([7; 32]).rotated([8; 32]).expect("there is a first one");
    if let Ok(context) = Context::open(&bytes, CLUSTER, KEY) {
        let again = Context::open(&context.seal(CLUSTER, KEY), CLUSTER, KEY).expect("a sealed context");
        assert_eq!(again, context);
        assert_eq!(keys.open(&keys.seal(&context, CLUSTER, KEY), CLUSTER, KEY), Ok(context));
    }
    assert!(keys.open(&bytes, CLUSTER, KEY).is_err(), "made up");
    if let Ok([head, body, tag]) = taken_apart(&bytes) {
        assert_eq!([head, body, tag].concat(), data);
    }
    // What nodes tell each other of their secrets.
    if let Ok(keys) = codec::decode::<ContextKeys>(&bytes) {
        let again: ContextKeys = codec::decode(&codec::encode(&keys)).expect("encoded keys");
        assert_eq!((again.names(), again.digest()), (keys.names(), keys.digest()));
    }
});
