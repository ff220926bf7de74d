// @ts-check
/**
 * outbox.check(): a doctor.
 *
 *  1. Of a healthy installation it finds nothing wrong.
 *  2. Each usual mistake is one row that is not ok, with what is wrong and the way to mend it.
 *  3. Once it is mended, the row is ok again or gone.
 *
 * What would break silently: somebody whose events do not arrive is told that all is well.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startRealtime } from '../../demo/realtime/server.mjs';
import { signToken } from '../../demo/realtime/tokens.mjs';
import { freePort, startCluster } from '../harness/cluster.mjs';
import { waitUntil } from '../harness/wait.mjs';
import { connect } from './support/database.mjs';
import { SECRET, delivered, setSink } from './support/delivery.mjs';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {Awaited<ReturnType<typeof startRealtime>>} */
let realtime;
/** @type {import('pg').Client} */
let client;
before(async () => {
  cluster = await startCluster();
  realtime = await startRealtime({ databaseUrl: cluster.url(), jwtSecret: SECRET });
  client = await connect(cluster);
  await client.query(`create extension pg_outbox;
    create table job (id int primary key, org_id text);
    select outbox.attach('job');
    ${POLICY}`);
  await healthySink();
});
after(async () => {
  await client?.end();
  await realtime?.stop();
  await cluster?.stop();
});

const POLICY = `create policy members_read on realtime.messages for select to authenticated
  using (realtime.topic() = 'notifications:org_' || auth.uid())`;

const healthySink = () => setSink(client, realtime.url, { timeout_ms: 1000 });

/** A sink whose token is made by us. @param {Record<string, unknown>} claims */
async function sinkWithToken(claims) {
  await client.query("select outbox.set_secret('token', $1)", [signToken(claims, SECRET)]);
  await client.query("select outbox.set_sink('realtime', 'realtime', $1)",
    [JSON.stringify({ url: realtime.url, secret: 'token', timeout_ms: 1000 })]);
}

async function complaints() {
  const { rows } = await client.query('select name, detail, hint from outbox.check() where not ok');
  return rows;
}

/** What could not be tried, but for the members, whom the doctor cannot know. */
async function unknowns() {
  const { rows } = await client.query(`select name, detail, hint from outbox.check()
    where ok is null and name <> 'realtime members'`);
  return rows;
}

/** @type {string[]} */
let detached = [];

const now = () => Math.floor(Date.now() / 1000);
const sql = (/** @type {string} */ text) => () => client.query(text);

/** @type {Record<string, { make: () => any, says: RegExp, mend: () => any, isUnknown?: boolean }>} */
const MISTAKES = {
  'no sink': { make: sql("select outbox.drop_sink('realtime')"), says: /set_sink/, mend: healthySink },
  'a disabled sink': {
    make: sql("select outbox.disable_sink('realtime')"), says: /enable_sink/,
    mend: sql("select outbox.enable_sink('realtime')"),
  },
  'a paused sink': {
    make: sql("select outbox.pause('realtime')"), says: /outbox\.resume/, mend: sql('select outbox.resume()'),
  },
  'a wrong secret': {
    make: sql("select outbox.set_secret('realtime', 'not the secret of this project at all')"),
    says: /secret|token/i, mend: healthySink,
  },
  'an expired token': {
    make: () => sinkWithToken({ role: 'service_role', exp: now() - 60 }), says: /expired/i, mend: healthySink,
  },
  'a token that expires soon': {
    make: () => sinkWithToken({ role: 'service_role', exp: now() + 3600 }), says: /expires/i, mend: healthySink,
  },
  'a token of somebody who may not send': {
    make: () => sinkWithToken({ role: 'anon', exp: now() + 10 * 365 * 86_400 }), says: /service_role/, mend: healthySink,
  },
  'a sink that cannot be reached': {
    make: async () => setSink(client, `http://127.0.0.1:${await freePort()}`, { timeout_ms: 1000 }),
    says: /connect|reach|running/i, mend: healthySink,
  },
  'nobody may join': {
    make: sql('drop policy members_read on realtime.messages'), says: /policy/, mend: sql(POLICY),
  },
  'row level security is off': {
    make: sql('alter table realtime.messages disable row level security'), says: /row level security/,
    mend: sql('alter table realtime.messages enable row level security'),
  },
  'everybody may join': {
    make: sql('create policy everybody on realtime.messages for select to authenticated using (true)'),
    says: /made up may listen/, mend: sql('drop policy everybody on realtime.messages'),
  },
  'a policy that raises errors': {
    make: sql(`create policy casts on realtime.messages for select to authenticated
      using (substr(topic, 19)::integer = 1); insert into job values (1, 'north')`),
    says: /raise an error.*invalid input/, mend: sql('drop policy casts on realtime.messages; delete from job'),
  },
  'no partition of today': {
    make: async () => {
      const { rows } = await client.query(`select inhrelid::regclass::text as partition from pg_inherits
        where inhparent = 'realtime.messages'::regclass`);
      for (const { partition } of rows) await client.query(`alter table realtime.messages detach partition ${partition}`);
      detached = rows.map(({ partition }) => partition);
    },
    says: /could not be tried.*no partition/, isUnknown: true,
    mend: async () => {
      for (const partition of detached) await client.query(`drop table ${partition}`);
      await realtime.stop();
      realtime = await startRealtime({ databaseUrl: cluster.url(), jwtSecret: SECRET, port: realtime.port });
    },
  },
  'a relay whose role may not send': {
    make: sql('alter role service_role nobypassrls'), says: /service_role may not send/,
    mend: sql('alter role service_role bypassrls'),
  },
  'users may send': {
    make: sql('create policy send on realtime.messages for insert to authenticated with check (true)'),
    says: /write/, mend: sql('drop policy send on realtime.messages'),
  },
  'a row without an organisation': {
    make: sql('insert into job values (1, null)'), says: /org_id/,
    // Those that were counted stay counted until the server starts again.
    mend: async () => {
      await client.query('delete from job');
      await restart();
    },
  },
  'a trigger that is disabled': {
    make: sql('alter table job disable trigger outbox_capture'), says: /enable trigger|attach/,
    mend: sql('alter table job enable trigger outbox_capture'),
  },
  'a table that is gone': {
    make: sql("create table gone (id int primary key, org_id text); select outbox.attach('gone'); drop table gone"),
    says: /detach/,
    mend: async () => {
      const { rows } = await client.query('select source::oid as oid from outbox.sources where not captured');
      await client.query('select outbox.detach($1::oid::regclass)', [rows[0].oid]);
    },
  },
  'delivery switched off': {
    make: async () => cluster.reload({ 'pg_outbox.enabled': 'off' }), says: /pg_outbox\.enabled/,
    mend: async () => cluster.reload({ 'pg_outbox.enabled': null }),
  },
  'a database that is not listed': {
    make: async () => cluster.reload({ 'pg_outbox.databases': 'another' }), says: /pg_outbox\.databases/,
    mend: async () => cluster.reload({ 'pg_outbox.databases': null }),
  },
};

async function restart() {
  await client.end();
  await cluster.restart();
  client = await connect(cluster);
  await delivered(client);
}

const healthy = () => waitUntil(async () => [...await complaints(), ...await unknowns()],
  'the doctor to find nothing', { accept: (rows) => rows.length === 0 });

test('a healthy installation', async () => {
  await healthy();
});

for (const [mistake, { make, says, mend, isUnknown }] of Object.entries(MISTAKES)) {
  test(mistake, async () => {
    await healthy();
    await make();
    const rows = await waitUntil(isUnknown ? unknowns : complaints, `a word that says ${says}`, {
      accept: (found) => found.some(({ detail, hint }) => says.test(`${detail} ${hint}`)),
    });
    for (const { name, detail, hint } of rows) {
      assert.ok(detail && hint, `${name}: ${detail}, ${hint}`);
      assert.ok(!`${detail} ${hint}`.includes(SECRET), 'the secret is out');
    }
    await mend();
    await healthy();
  });
}

test('the policies of setup_realtime, tried with somebody who is a member', async () => {
  const MEMBER = '33333333-3333-4333-8333-333333333333';
  await client.query(`drop policy members_read on realtime.messages;
    create function is_member(org text) returns boolean language sql as
      $$ select auth.uid() = '${MEMBER}' and org = 'north' $$;
    insert into job values (1, 'south'), (2, 'north');
    select outbox.setup_realtime('${realtime.url}', 'is_member')`);
  const row = async (/** @type {string} */ name) =>
    (await client.query('select ok, detail, hint from outbox.check() where name = $1', [name])).rows[0];
  const signIn = (/** @type {string} */ person, role = 'authenticated') => client.query(
    "select set_config('request.jwt.claims', $1, false)", [JSON.stringify({ sub: person, role })]);
  await healthy();
  const { ok, hint } = await row('realtime members');
  assert.equal(ok, null);
  assert.match(hint, /request\.jwt\.claims/);
  await signIn(MEMBER);
  assert.equal((await row('realtime members')).ok, true);
  await signIn('44444444-4444-4444-8444-444444444444');
  assert.deepEqual([(await row('realtime members')).ok, (await row('realtime members')).detail],
    [null, 'not tried: the person signed in is a member of none of 2 organisations in the attached tables']);
  await signIn(MEMBER, 'postgres');
  assert.equal((await row('realtime members')).ok, null, 'nobody is made a superuser by a claim');

  await signIn(MEMBER);
  const [policy] = (await client.query("select polname from pg_policy where polname like 'pg_outbox: members receive%'")).rows;
  await client.query(`drop policy "${policy.polname}" on realtime.messages`);
  assert.equal((await row('realtime members')).ok, false);
  assert.match((await row('realtime policies')).detail, /missing or changed: pg_outbox: members receive/);
  await client.query(`create policy "${policy.polname}" on realtime.messages for select to authenticated using (true)`);
  assert.match((await row('realtime policies')).detail, /missing or changed: pg_outbox: members receive/);
  assert.equal((await row('realtime strangers')).ok, true, 'the other policies hold');
  await client.query("select outbox.setup_realtime($1, 'is_member')", [realtime.url]);
  assert.equal((await row('realtime members')).ok, true);
  await healthy();

  await client.query('drop function is_member cascade');
  assert.match((await row('realtime policies')).detail, /is_member\(text\) is gone/);
  const left = await client.query('select count(*)::int as n from realtime.messages');
  assert.equal(left.rows[0].n, 0, 'no probe stays');
});
