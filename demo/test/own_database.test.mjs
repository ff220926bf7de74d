// @ts-check
/**
 * The demo in somebody's own database: it says what is missing, changes nothing that is not its
 * own, and takes its tables, its policy, its triggers and its sink away again.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { startCluster } from '../../pgrx-tests/harness/cluster.mjs';
import { waitUntil } from '../../pgrx-tests/harness/wait.mjs';
import { startRealtime } from '../realtime/server.mjs';
import { startDemo } from '../stack.mjs';

/** @type {import('../../pgrx-tests/harness/cluster.mjs').Cluster} */
let cluster;
before(async () => {
  cluster = await startCluster();
});
after(() => cluster?.stop());

/** @param {string} name */
async function createDatabase(name) {
  await cluster.psql(`create database ${name}`);
  return {
    url: cluster.url(name),
    psql: (/** @type {string} */ sql) => cluster.psql(sql, { database: name }),
  };
}

test('a demo in an own database works, and leaves it as it was', async (t) => {
  const { url, psql } = await createDatabase('own');
  const tables = `select count(*) from pg_class where relnamespace = 'public'::regnamespace`;
  const demo = await startDemo({ databaseUrl: url });
  t.after(() => demo.stop());
  assert.equal(await psql('select count(*) from outbox.sources'), '2');
  assert.notEqual(await psql(tables), '0');
  await demo.stop();
  assert.equal(await psql(tables), '0');
  assert.equal(await psql(`select count(*) from outbox.sources`), '0');
  assert.equal(await psql(`select count(*) from outbox.status`), '0');
  assert.equal(await psql(`select count(*) from pg_policies`), '0');
  assert.equal(
    await psql(`select count(*) from pg_proc where pronamespace = 'public'::regnamespace`),
    '0',
  );

  // What a killed demo left is no obstacle to the next one.
  await psql(readFileSync(new URL('../schema.sql', import.meta.url), 'utf8'));
  await (await startDemo({ databaseUrl: url })).stop();
  assert.equal(await psql(tables), '0');
});

test("a Realtime of one's own is broadcast through, and not switched", async (t) => {
  const { url, psql } = await createDatabase('whole');
  const jwtSecret = 'a secret of this project';
  const realtime = await startRealtime({ databaseUrl: url, jwtSecret });
  t.after(() => realtime.stop());
  const demo = await startDemo({ databaseUrl: url, realtimeUrl: realtime.url, jwtSecret });
  t.after(() => demo.stop());

  const next = `case status when 'done' then 'queued' else 'done' end`;
  await psql(`update cataloging_jobs set status = ${next} where number = 5`);
  await waitUntil(() => realtime.stats().messages, 'a message of each organisation', {
    accept: (messages) => messages === 2,
  });
  const refused = await fetch(`${demo.url}/api/realtime`, {
    method: 'POST',
    body: '{"running": false}',
  });
  assert.equal(refused.status, 409);
  await demo.stop();
  assert.equal((await fetch(`${realtime.url}/healthcheck`)).status, 200);
});

test("tables of one's own are left alone", async () => {
  const { url, psql } = await createDatabase('taken');
  await psql('create table public.flags (mine text); insert into public.flags values ($$kept$$)');
  await assert.rejects(startDemo({ databaseUrl: url }), /already has public\.flags/);
  assert.equal(await psql('select mine from public.flags'), 'kept');
});

test("a sink of one's own is left alone", async () => {
  const { url, psql } = await createDatabase('sending');
  const options = `{"url": "http://127.0.0.1:1", "secret": "mine"}`;
  await psql(`create extension pg_outbox; select outbox.set_secret('mine', 'token');
              select outbox.set_sink('realtime', 'realtime', '${options}')`);
  await assert.rejects(startDemo({ databaseUrl: url }), /already has a sink called 'realtime'/);
  assert.equal(await psql('select sink from outbox.status'), 'realtime');
  await psql(`select outbox.drop_sink('realtime')`);
});

test('a server that does not preload the extension is said to be one', async () => {
  await cluster.configure({ shared_preload_libraries: '' });
  await cluster.restart();
  await assert.rejects(startDemo({ databaseUrl: cluster.url() }), /shared_preload_libraries/);
});
