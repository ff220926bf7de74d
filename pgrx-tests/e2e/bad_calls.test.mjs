// @ts-check
/**
 * Calls that are wrong.
 *
 *  1. Each gets an error of its own: the SQLSTATE below, a message in lower case, a hint.
 *  2. None is an internal error (XX000), and none changes anything.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { column, connect, refusal } from './support/database.mjs';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {import('pg').Client} */
let client;
before(async () => {
  cluster = await startCluster();
  client = await connect(cluster);
  await client.query(`create extension pg_outbox;
    create table job (id int primary key, org_id uuid, status text);
    create table keyless (id int, org_id uuid);
    create table orgless (id int primary key);
    create table oddly_owned (id int primary key, org_id point);
    create view seen as select * from job;
    create materialized view stored as select * from job;
    create sequence counting;
    create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing;
    create foreign table far (id int, org_id uuid) server nowhere;
    create temp table fleeting (id int primary key, org_id uuid);
    select outbox.create_event_type('report.ready');
    select outbox.set_secret('token', 'x.y.z');`);
});
after(async () => {
  await client?.end();
  await cluster?.stop();
});

const SINK = (/** @type {string} */ options) => `select outbox.set_sink('realtime', 'realtime', '${options}')`;
const URL_AND_SECRET = '"url": "http://127.0.0.1:4000", "secret": "token"';

const INVALID = '22023';
const NULL_VALUE = '22004';
const NO_TABLE = '42P01';
const NO_COLUMN = '42703';
const NO_OBJECT = '42704';
const WRONG_OBJECT = '42809';

/** @type {Record<string, [sql: string, sqlstate: string][]>} */
const CALLS = {
  attach: [
    ["select outbox.attach('missing')", NO_TABLE],
    ['select outbox.attach(null)', NULL_VALUE],
    ['select outbox.attach(0)', NO_TABLE],
    ["select outbox.attach('keyless')", '42P16'],
    ["select outbox.attach('orgless')", NO_COLUMN],
    ["select outbox.attach('oddly_owned')", '42804'],
    ["select outbox.attach('job', org_column => 'tenant')", NO_COLUMN],
    ["select outbox.attach('job', key_columns => '{no}')", NO_COLUMN],
    ["select outbox.attach('job', key_columns => '{}')", INVALID],
    ["select outbox.attach('job', key_columns => '{id,null}')", NO_COLUMN],
    ["select outbox.attach('job', key_columns => '{id,id}')", '42701'],
    ["select outbox.attach('job', watch => '{state}')", NO_COLUMN],
    ["select outbox.attach('job', watch => '{}')", INVALID],
    ["select outbox.attach('job', watch => '{status,status}')", '42701'],
    ["select outbox.attach('job', watch => '{ctid}')", NO_COLUMN],
    ["select outbox.attach('job', include => '{state}')", NO_COLUMN],
    ["select outbox.attach('job', events => '{}')", INVALID],
    ["select outbox.attach('job', events => '{insert,truncate}')", INVALID],
    ["select outbox.attach('job', events => '{null}')", INVALID],
    ["select outbox.attach('job', entity => 'Job')", INVALID],
    ["select outbox.attach('job', entity => '')", INVALID],
    ["select outbox.attach('job', entity => 'a.b')", INVALID],
    ["select outbox.attach('job', topic => 'no spaces')", INVALID],
    ["select outbox.attach('seen')", WRONG_OBJECT],
    ["select outbox.attach('stored')", WRONG_OBJECT],
    ["select outbox.attach('counting')", WRONG_OBJECT],
    ["select outbox.attach('far')", WRONG_OBJECT],
    ["select outbox.attach('fleeting')", WRONG_OBJECT],
    ["select outbox.attach('job_pkey')", WRONG_OBJECT],
    ["select outbox.attach('pg_class')", WRONG_OBJECT],
    ["select outbox.attach('_private.sinks')", WRONG_OBJECT],
  ],
  detach: [
    ["select outbox.detach('job')", NO_OBJECT],
    ["select outbox.detach('missing')", NO_TABLE],
    ['select outbox.detach(null)', NULL_VALUE],
  ],
  'create_event_type and emit': [
    ["select outbox.create_event_type('nodot')", INVALID],
    ["select outbox.create_event_type('Job.Created')", INVALID],
    ['select outbox.create_event_type(null)', INVALID],
    [`select outbox.create_event_type('a.${'x'.repeat(200)}')`, INVALID],
    ["select outbox.emit('job.exploded', 'org', '{}')", NO_OBJECT],
    ["select outbox.emit('nodot', 'org', '{}')", NO_OBJECT],
    ["select outbox.emit(null, 'org', '{}')", NULL_VALUE],
    ["select outbox.emit('report.ready', null, '{}')", NULL_VALUE],
    ["select outbox.emit('report.ready', '', '{}')", INVALID],
    ["select outbox.emit('report.ready', 'org', null)", NULL_VALUE],
    ["select outbox.emit('report.ready', 'org', '[1]')", INVALID],
    ["select outbox.emit('report.ready', 'org', '{}', topic => 'No!')", INVALID],
    ["select outbox.emit('report.ready', 'org', '{}', version => 0)", INVALID],
    ["select outbox.emit('report.ready', 'org', '{}', version => 100000)", INVALID],
    ["select outbox.emit('report.ready', 'org', jsonb_build_object('x', repeat('x', 10000)))", INVALID],
  ],
  set_sink: [
    ["select outbox.set_sink('Real Time', 'realtime', '{}')", INVALID],
    ["select outbox.set_sink(null, 'realtime', '{}')", INVALID],
    ["select outbox.set_sink('x', 'carrier_pigeon', '{}')", INVALID],
    ["select outbox.set_sink('x', null, '{}')", INVALID],
    ["select outbox.set_sink('x', 'realtime', null)", INVALID],
    ["select outbox.set_sink('x', 'realtime', '[]')", INVALID],
    [SINK('{}'), INVALID],
    [SINK('{"url": "http://127.0.0.1:4000"}'), INVALID],
    [SINK('{"url": "ftp://127.0.0.1/", "secret": "token"}'), INVALID],
    [SINK('{"url": "http://", "secret": "token"}'), INVALID],
    [SINK('{"url": "127.0.0.1:4000", "secret": "token"}'), INVALID],
    [SINK('{"url": "http://user:pass@127.0.0.1", "secret": "token"}'), INVALID],
    [SINK('{"url": 7, "secret": "token"}'), INVALID],
    [SINK('{"url": "http://127.0.0.1:4000", "secret": "no_such_secret"}'), NO_OBJECT],
    [SINK('{"url": "http://127.0.0.1:4000", "jwt_secret": "no_such_secret"}'), NO_OBJECT],
    [SINK('{"url": "http://127.0.0.1:4000", "secret": "token", "jwt_secret": "token"}'), INVALID],
    [SINK(`{${URL_AND_SECRET}, "retires": 3}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "window_ms": -1}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "window_ms": "250"}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "burst": 0}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "connections": 0}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "connections": 1.5}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "timeout_ms": 0}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "message_events_max": 0}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "message_bytes_max": 1e12}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "order": "chaotic"}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "private": "yes"}`), INVALID],
    [SINK(`{${URL_AND_SECRET}, "start": "yesterday"}`), INVALID],
  ],
  'steering and secrets': [
    ["select outbox.drop_sink('missing')", NO_OBJECT],
    ['select outbox.drop_sink(null)', NULL_VALUE],
    ["select outbox.enable_sink('missing')", NO_OBJECT],
    ['select outbox.enable_sink(null)', NO_OBJECT],
    ["select outbox.disable_sink('missing')", NO_OBJECT],
    ["select outbox.pause('missing')", NO_OBJECT],
    ["select outbox.resume('missing')", NO_OBJECT],
    ["select outbox.set_secret('', 'x')", INVALID],
    ["select outbox.set_secret('x', '')", INVALID],
    ["select outbox.set_secret('x', null)", INVALID],
    ["select outbox.prune('-1 hour')", INVALID],
    ["select outbox.wait_until_delivered('-1 s')", INVALID],
    ['select outbox.wait_until_delivered(null)', INVALID],
  ],
  settings: [
    ["set pg_outbox.origin = '" + 'x'.repeat(65) + "'", INVALID],
    ["set pg_outbox.capture = 'perhaps'", INVALID],
    ['set pg_outbox.no_such_setting = 1', '42602'],
    ["alter system set pg_outbox.retention = '-1 h'", INVALID],
    ['set pg_outbox.poll_interval = 1', '55P02'],
  ],
};

/** Everything that a call could have changed. */
const STATE = `select md5(string_agg(row::text, '|' order by row::text)) from (
  select s::text as row from _private.sources s union all select t::text from _private.event_types t
  union all select k::text from _private.sinks k union all select c.sink from _private.cursors c
  union all select x::text from _private.secrets x union all select o::text from _private.outbox o
  union all select g.oid::text from pg_trigger g) everything`;

for (const [group, calls] of Object.entries(CALLS)) {
  describe(group, () => {
    for (const [sql, sqlstate] of calls) {
      test(sql.length > 150 ? `${sql.slice(0, 150)}…` : sql, async () => {
        const [before] = await column(client, STATE);
        const error = await refusal(client, sql);
        assert.equal(error.code, sqlstate, error.message);
        assert.match(error.message, /^[^A-Z]/, 'a message begins in lower case');
        if (isOurs(sqlstate, sql)) assert.ok(error.hint, `no hint: ${error.message}`);
        assert.deepEqual(await column(client, STATE), [before], 'it changed something');
      });
    }
  });
}

/** Names that Postgres itself looks up before we are called, and its own settings machinery. */
function isOurs(/** @type {string} */ sqlstate, /** @type {string} */ sql) {
  return !(sqlstate === NO_TABLE || sql.startsWith('set ') || sql.startsWith('alter system'));
}

test('what is secret stays secret in every error', async () => {
  await refusal(client, SINK('{"url": "ftp://u:hunter2@x", "secret": "token"}')).then((error) =>
    assert.ok(!`${error.message} ${error.detail} ${error.hint}`.includes('hunter2')));
});
