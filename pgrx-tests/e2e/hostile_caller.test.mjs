// @ts-check
/**
 * Whoever may call a function, own a table or own the database gets no other rights by it.
 *
 *  1. What runs with the rights of the extension's owner runs no code of the caller's.
 *  2. The relay runs no code of the database's owner.
 *
 * What would break silently: an application's role that is a superuser.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { column, connect, value, waitForValue } from './support/database.mjs';
import { delivered, relayOf, setSink } from './support/delivery.mjs';
import { startSink } from './support/sink.mjs';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {import('pg').Client} */
let admin;
/** @type {Awaited<ReturnType<typeof startSink>>} */
let sink;
before(async () => {
  sink = await startSink();
  cluster = await startCluster();
  admin = await connect(cluster);
  await admin.query('create role app login; create role owner login');
  await admin.query('create database shop owner owner');
});
after(async () => {
  await admin?.end();
  await cluster?.stop();
  await sink.stop();
});

/** An operator that takes the place of Postgres' own for whoever looks it up in schema `trap`. */
const TRAP = `create schema trap;
  create table trap.sprung (who text);
  grant usage on schema trap to public;
  grant insert on trap.sprung to public;
  create function trap.equals(text, text) returns boolean language plpgsql as $$
    begin
      insert into trap.sprung values (current_user);
      return $1 operator(pg_catalog.=) $2;
    end $$;
  create operator trap.= (leftarg = text, rightarg = text, function = trap.equals)`;

test('emit looks nothing up in the path of its caller, and leaves it as it is', async () => {
  await admin.query(`create extension pg_outbox; grant create on database postgres to app;
    select outbox.create_event_type('trap.laid'); grant usage on schema outbox to app;
    grant execute on function outbox.emit to app`);
  const app = await connect(cluster, { user: 'app' });
  await app.query(TRAP);
  await app.query('set search_path = trap, pg_catalog');
  await app.query(`select outbox.emit('trap.laid', 'org', '{}')`);
  assert.deepEqual(await column(app, 'select who from trap.sprung'), []);
  assert.equal(await value(app, 'show search_path'), 'trap, pg_catalog');
  await app.end();
});

test('the relay looks nothing up in the path of its database', async () => {
  const client = await connect(cluster, { database: 'shop' });
  await client.query('create extension pg_outbox');
  const owner = await connect(cluster, { database: 'shop', user: 'owner' });
  await owner.query(TRAP);
  await owner.query('alter database shop set search_path = trap, pg_catalog');
  const { pid } = await waitForValue(admin,
    "select to_json(a) from pg_stat_activity a where datname = 'shop' and backend_type like '%relay%'",
    'the relay of the shop');
  await admin.query('select pg_terminate_backend($1)', [pid]);
  await waitForValue(admin, `select count(*) from pg_stat_activity
    where datname = 'shop' and backend_type like '%relay%' and pid <> ${pid}`, 'another relay',
  { accept: (count) => Number(count) === 1 });
  await setSink(client, sink.url);
  await client.query("select outbox.create_event_type('trap.laid')");
  await client.query("select outbox.emit('trap.laid', 'org', '{}')");
  await delivered(client);
  assert.ok(await relayOf(admin, 'shop'));
  assert.deepEqual(await column(owner, 'select who from trap.sprung'), []);
  await owner.end();
  await client.end();
});
