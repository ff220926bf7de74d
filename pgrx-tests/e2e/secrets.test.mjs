// @ts-check
/**
 * Where a secret can be seen.
 *
 *  1. Set as a parameter, it stands in no log at debug5, no statement's text, no dump, no view and
 *     no error, while the relay sends with it and while the sink refuses it.
 *  2. Nobody but the owner of the extension reads the table that holds it.
 *
 * What would break silently: whoever reads a log can send to every organisation.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { startCluster } from '../harness/cluster.mjs';
import { column, connect, refusal, waitForValue } from './support/database.mjs';
import { delivered } from './support/delivery.mjs';
import { hashToken, startSink } from './support/sink.mjs';

const TOKEN = 'tok3n-of-the-secrets-test';
const JWT_SECRET = 'jwt-s3cret-of-the-secrets-test-long-enough';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {Awaited<ReturnType<typeof startSink>>} */
let sink;
/** @type {import('pg').Client} */
let client;
before(async () => {
  sink = await startSink();
  cluster = await startCluster({ settings: {
    shared_preload_libraries: 'pg_outbox,pg_stat_statements', log_min_messages: 'debug5',
    'pg_stat_statements.track': 'all', track_activity_query_size: 16_384,
  } });
  client = await connect(cluster);
  await client.query(`create extension pg_stat_statements; create extension pg_outbox;
    create table job (id bigint primary key generated always as identity, org_id text);
    select outbox.attach('job')`);
});
after(async () => {
  await client?.end();
  await cluster?.stop();
  await sink?.stop();
});

/** Throws with the place where one of the secrets was found. @param {string} place @param {string} text */
function assertHidden(place, text) {
  for (const secret of [TOKEN, JWT_SECRET]) assert.ok(!text.includes(secret), `it stands in ${place}`);
}

/** The command lines of all processes of this machine. */
async function commandLines() {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const lines = pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => ''));
  return (await Promise.all(lines)).join('\n');
}

test('a secret that is set as a parameter and used is seen nowhere', async () => {
  await client.query('select outbox.set_secret($1, $2)', ['token', TOKEN]);
  await client.query('select outbox.set_secret($1, $2)', ['signing', JWT_SECRET]);
  await client.query("select outbox.set_sink('given', 'realtime', $1)", [JSON.stringify({ url: sink.url, secret: 'token' })]);
  await client.query("select outbox.set_sink('signed', 'realtime', $1)", [JSON.stringify({ url: sink.url, jwt_secret: 'signing' })]);
  await client.query("insert into job (org_id) values ('org')");
  await delivered(client);
  const sent = sink.requests.map(({ headers }) => headers.authorization);
  assert.ok(sent.includes(hashToken(TOKEN)), 'it is in use');

  sink.answerWith(() => 401);
  await client.query("insert into job (org_id) values ('org')");
  await waitForValue(client, "select count(*) = 2 from outbox.status where state = 'waiting'", 'both sinks to be refused');
  const texts = [
    ...await column(client, 'select c::text from outbox.check() c'),
    ...await column(client, 'select s::text from outbox.status s'),
    ...await column(client, 'select m::text from outbox.metrics m'),
    ...await column(client, 'select o::text from outbox.sink_options o'),
    ...await column(client, 'select s::text from _private.sinks s'),
  ];
  assertHidden('a view', texts.join('\n'));
  assertHidden('pg_stat_activity', (await column(client, 'select a::text from pg_stat_activity a')).join('\n'));
  assertHidden('pg_stat_statements', (await column(client, 'select s::text from pg_stat_statements s')).join('\n'));
  assertHidden('a command line', await commandLines());
  const { stdout } = await promisify(execFile)(join(cluster.pgBin, 'pg_dump'), [cluster.url()], { maxBuffer: 2 ** 28 });
  assert.match(stdout, /COPY _private\.sinks/);
  assertHidden('a dump', stdout);
  const log = await cluster.log();
  assert.match(log, /DEBUG/);
  assertHidden('the log', log);
});

test('errors about a secret do not show it', async () => {
  const errors = await Promise.all([
    client.query('select outbox.set_secret(null, $1)', [TOKEN]),
    client.query('select outbox.set_secret($1, $2)', ['x'.repeat(200), TOKEN]),
  ].map((call) => call.then(() => assert.fail('it was accepted'), (/** @type {any} */ error) => error)));
  for (const error of errors) assertHidden('an error', JSON.stringify(error) + error.message);
  assertHidden('the log', await cluster.log());
});

test('nobody but the owner reads it, although they may monitor', async () => {
  await client.query('create role monitor login; grant pg_monitor to monitor');
  const monitor = await connect(cluster, { user: 'monitor' });
  assert.equal((await refusal(monitor, 'select * from _private.secrets')).code, '42501');
  const texts = [
    ...await column(monitor, 'select c::text from outbox.check() c'),
    ...await column(monitor, 'select s::text from pg_stats s'),
    ...await column(monitor, 'select s::text from pg_stat_statements s'),
  ];
  assertHidden('what a monitor sees', texts.join('\n'));
  await monitor.end();
});
