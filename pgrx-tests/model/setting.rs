//! Settings of a relay, as users may choose them and as they would not.

use pg_outbox::config::Order;
use pg_outbox::relay::pace::Rate;
use pg_outbox::relay::plan::Settings;
use pg_outbox::relay::time::Duration;

use crate::chance::Chance;

pub fn random(chance: &mut Chance) -> Settings {
    Settings {
        lanes: chance.pick(&[1, 2, 4, 9]),
        rate: Rate {
            burst: chance.pick(&[1, 4]),
            window: Duration::from_ms(chance.pick(&[0, 10, 250, 1_000])),
        },
        events_per_second: chance.pick(&[0, 10, 20, 100]),
        message_events_max: chance.pick(&[1, 3, 500]),
        message_bytes_max: 262_144,
        retries: chance.pick(&[0, 1, 3]),
        order: chance.pick(&[Order::Relaxed, Order::Strict]),
        memory_limit_bytes: chance.pick(&[2_000, 20_000, 1_000_000]),
    }
}
