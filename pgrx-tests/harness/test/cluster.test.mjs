// @ts-check
/**
 * The contract of the cluster that every other test stands on:
 *   1. it answers as soon as `startCluster` resolves, on TCP and on the socket in its folder;
 *   2. settings count, and data survive restart, halt and kill9;
 *   3. nothing of it remains after stop(), after a failed start, or when the runner was killed;
 *   4. two clusters do not see each other.
 * Were 3 wrong, machines would fill up with servers that nobody remembers starting.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { processesIn, startCluster } from '../cluster.mjs';
import { waitUntil } from '../wait.mjs';

const HARNESS = fileURLToPath(new URL('../cluster.mjs', import.meta.url));

describe('a running cluster', () => {
  /** @type {import('../cluster.mjs').Cluster} */
  let cluster;
  before(async () => {
    const settings = { work_mem: '7MB', 'pg_outbox.note': "it's quoted" };
    process.env.RUST_BACKTRACE = '1';
    process.env.PGDATABASE = 'nowhere';
    cluster = await startCluster({ preload: false, settings, env: { SENTINEL: 'given' } });
  });
  after(() => cluster?.stop());

  test('answers on TCP, in the asked database', async () => {
    await cluster.psql('create database other');
    const sql = 'select current_database(), inet_server_port()';
    assert.equal(await cluster.psql(sql, { database: 'other' }), `other|${cluster.port}`);
    assert.equal(new URL(cluster.url('other')).pathname, '/other');
  });

  test('has a socket in its folder and runs as an ordinary user', async () => {
    assert.ok(existsSync(`${cluster.directory}/.s.PGSQL.${cluster.port}`));
    assert.equal(await cluster.psql('show data_directory'), cluster.dataDirectory);
    assert.ok(processesIn(cluster.dataDirectory).includes(String(cluster.pid)));
  });

  test('applies settings at start, at reload and at restart', async () => {
    const sql = `select current_setting('work_mem'), current_setting('pg_outbox.note')`;
    assert.equal(await cluster.psql(sql), "7MB|it's quoted");
    await cluster.reload({ work_mem: '9MB' });
    await waitUntil(() => cluster.psql('show work_mem'), 'the reload', {
      accept: (value) => value === '9MB',
    });
    await cluster.configure({ max_connections: 42, work_mem: null });
    await cluster.restart();
    assert.equal(await cluster.psql('show max_connections'), '42');
    assert.equal(await cluster.psql('show work_mem'), '4MB');
  });

  test('does not hand the caller\'s RUST_BACKTRACE and PG* variables to the server', async () => {
    const names = readFileSync(`/proc/${cluster.pid}/environ`, 'utf8').split('\0');
    assert.deepEqual(names.filter((name) => /^(RUST_BACKTRACE|PGDATABASE)=/.test(name)), []);
    assert.ok(names.includes('SENTINEL=given'));
    assert.equal(await cluster.psql('select current_database()'), 'postgres');
  });

  test('keeps its data over a halt, a kill and restarts', async () => {
    await cluster.psql('create table kept (n int); insert into kept values (1)');
    const { port } = cluster;
    const immediately = () => cluster.halt({ mode: 'immediate' });
    for (const down of [() => cluster.halt(), immediately, () => cluster.kill9()]) {
      await down();
      assert.equal(cluster.pid, null);
      await assert.rejects(cluster.psql('select 1'), /Connection refused/);
      await cluster.start();
      assert.equal(await cluster.psql('select n from kept'), '1');
      assert.equal(cluster.port, port);
    }
  });

  test('an SQL error is the message of the rejection', async () => {
    await assert.rejects(cluster.psql('select 1; select 1/0; select 2'), /division by zero/);
  });

  test('keeps a log', async () => {
    assert.match(await cluster.log(), /database system is ready to accept connections/);
  });
});

test('stop() leaves neither process nor folder, and another cluster alone', async () => {
  const start = () => startCluster({ preload: false });
  const [one, two] = await Promise.all([start(), start()]);
  assert.notEqual(one.port, two.port);
  await one.stop();
  await one.stop();
  assert.equal(existsSync(one.directory), false);
  assert.deepEqual(processesIn(one.dataDirectory), []);
  assert.equal(await two.psql('select 1'), '1');
  await two.stop({ mode: 'immediate' });
  assert.equal(existsSync(two.directory), false);
});

for (const signal of /** @type {const} */ (['SIGKILL', 'SIGINT'])) {
  test(`nothing remains when the runner ends by ${signal}`, async () => {
    const script = `
      const { startCluster } = await import(${JSON.stringify(HARNESS)});
      const { directory } = await startCluster({ preload: false });
      console.log(directory);
      setInterval(() => {}, 1000);`;
    const runner = spawn(process.execPath, ['--input-type=module', '-e', script]);
    let output = '';
    runner.stdout.on('data', (chunk) => (output += chunk));
    await waitUntil(() => output.endsWith('\n'), 'the runner to have its cluster');
    const directory = output.trim();
    assert.notDeepEqual(processesIn(join(directory, 'data')), []);
    runner.kill(signal);
    await waitUntil(() => !existsSync(directory), `${directory} to be removed`);
    await waitUntil(() => processesIn(join(directory, 'data')), 'its processes to be gone', {
      accept: (processes) => processes.length === 0,
    });
  });
}

test('a start that fails says why and leaves nothing', async () => {
  const place = mkdtempSync('/tmp/failing-');
  chmodSync(place, 0o755);
  process.env.TMPDIR = place;
  const settings = { shared_preload_libraries: 'no_such_library' };
  await assert.rejects(startCluster({ settings }), /no_such_library/);
  assert.deepEqual(readdirSync(place), []);
  rmdirSync(place);
});
