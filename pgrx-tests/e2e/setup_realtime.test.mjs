// @ts-check
/**
 * outbox.setup_realtime: a sink, its secret, and who may listen, in one call.
 *
 *  1. Members hear their organisation, whatever the type of its key; strangers cannot join, and an
 *     organisation whose text is another than its type would write is nobody's.
 *  2. Nobody but the relay sends on these channels, and nobody else listens, whatever other
 *     policies allow.
 *  3. Members may catch up, strangers get the same error whether the organisation exists or not.
 *  4. Called again it replaces; drop_sink leaves neither a policy nor a grant behind.
 *  5. A call that is refused changes nothing.
 *
 * What would break silently: a person reads, or forges, another organisation's messages.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { startRealtime } from '../../demo/realtime/server.mjs';
import { signToken } from '../../demo/realtime/tokens.mjs';
import { startCluster } from '../harness/cluster.mjs';
import { waitUntil } from '../harness/wait.mjs';
import { listen } from './support/audience.mjs';
import { page, positionOf } from './support/catch_up.mjs';
import { column, connect, refusal, value } from './support/database.mjs';
import { SECRET, delivered } from './support/delivery.mjs';

const ADA = '11111111-1111-4111-8111-111111111111';
const BOB = '22222222-2222-4222-8222-222222222222';
const ORGS = {
  text: { ada: 'north', bob: 'south' },
  bigint: { ada: '42', bob: '43' },
  uuid: { ada: 'aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa', bob: 'bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb' },
};

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {Awaited<ReturnType<typeof startRealtime>>} */
let realtime;
/** @type {import('pg').Client} */
let client;
before(async () => {
  cluster = await startCluster();
  realtime = await startRealtime({
    databaseUrl: cluster.url(), jwtSecret: SECRET, joinErrorDelayMs: 0,
    limits: { eventsPerSecond: null },
  });
  client = await connect(cluster);
  await client.query(`create extension pg_outbox;
    create schema hidden;
    create table hidden.membership (person uuid, org text);
    insert into hidden.membership values
      ${Object.values(ORGS).map(({ ada, bob }) => `('${ADA}', '${ada}'), ('${BOB}', '${bob}')`).join(', ')};
    create table job (id bigint primary key generated always as identity, org_id text);
    select outbox.attach('job')`);
  for (const type of Object.keys(ORGS)) {
    // In a schema that the users have no right to, as is advised for such functions.
    await client.query(`create function hidden.is_member_${type}(wanted ${type}) returns boolean
      language sql stable security definer set search_path = pg_catalog, pg_temp
      as $$ select exists (select from hidden.membership m
        where m.person = auth.uid() and m.org = wanted::text) $$`);
  }
});
after(async () => {
  await client?.end();
  await realtime?.stop();
  await cluster?.stop();
});

/** @param {Record<string, string>} [more] arguments of the call, as SQL */
const setup = (more = {}) => {
  const given = { membership: "'hidden.is_member_text'", jwt_secret: `'${SECRET}'`, ...more };
  const parts = Object.entries(given).map(([name, sql]) => `${name} => ${sql}`);
  return client.query(`select outbox.setup_realtime('${realtime.url}', ${parts.join(', ')})`);
};

/** A backend that acts for a person as PostgREST makes it act. @param {string} person */
async function signedIn(person, role = 'authenticated') {
  const backend = await connect(cluster);
  const claims = JSON.stringify({ sub: person, role });
  await backend.query(`set role ${role}; set request.jwt.claims = '${claims}'`);
  return backend;
}

/** @param {string} person @param {string[]} organisations @param {(audience: any) => Promise<void>} work */
async function listening(person, organisations, work) {
  const audience = await listen(realtime.url, person, organisations);
  try {
    await work(audience);
  } finally {
    await audience.close();
  }
}

/** Everything beside the sink that a setup may touch. */
const surroundings = () => column(client, `
  select 'policy ' || polname || pg_get_expr(polqual, polrelid) from pg_policy where polrelid = 'realtime.messages'::regclass
  union all select 'function ' || proname || coalesce(proacl::text, '') from pg_proc where pronamespace = 'outbox'::regnamespace
  union all select 'schema ' || nspname || coalesce(nspacl::text, '') from pg_namespace
  union all select 'setup ' || s::text from _private.realtime_setups s
  union all select 'grant ' || g::text from _private.realtime_grants g
  union all select 'sink ' || sink || kind || options from _private.sinks
  union all select 'secret ' || name || value from _private.secrets order by 1`);

describe('members', () => {
  for (const [type, { ada, bob }] of Object.entries(ORGS)) {
    test(`of an organisation whose key is ${type}`, async () => {
      await setup({ membership: `'hidden.is_member_${type}'` });
      await listening(ADA, [ada, bob], async (audience) => {
        assert.equal(audience.statuses[0], 'SUBSCRIBED');
        assert.match(audience.statuses[1], /CHANNEL_ERROR.*Unauthorized/);
        const from = await positionOf(client);
        await client.query('insert into job (org_id) values ($1), ($2)', [ada, bob]);
        await waitUntil(() => audience.events(), 'the event', { accept: (events) => events.length > 0 });
        await delivered(client);
        assert.deepEqual(audience.events().map((/** @type {any} */ { org_id }) => org_id), [ada]);

        const backend = await signedIn(ADA);
        assert.equal((await page(backend, from, ada)).length, 1);
        assert.equal((await page(backend, await positionOf(backend), ada)).length, 0);
        const errors = [];
        for (const org of [bob, 'nobody', '0', '00000000-0000-4000-8000-000000000000', '']) {
          errors.push(await refusal(backend, `select * from outbox.events_since('${from}', '${org}')`));
        }
        const told = new Set(errors.map(({ code, message, detail, hint }) => JSON.stringify([code, message, detail, hint])));
        assert.equal(told.size, 1, 'a stranger learns nothing');
        assert.equal(errors[0].code, '42501');
        await backend.end();
      });
    });
  }

  test('a topic that is not the text of an organisation is nobody’s, and no error', async () => {
    const odd = {
      bigint: ['042', '+42', '42.0', ' 42', '99999999999999999999', '', 'x', '-0', '42\n'],
      uuid: [ORGS.uuid.ada.toUpperCase(), `{${ORGS.uuid.ada}}`, ORGS.uuid.ada.replaceAll('-', ''), 'x', ''],
    };
    for (const [type, texts] of Object.entries(odd)) {
      await setup({ membership: `'hidden.is_member_${type}'` });
      await listening(ADA, texts, async ({ statuses }) => {
        for (const status of statuses) assert.match(status, /Unauthorized: You do not have permissions/);
      });
      const backend = await signedIn(ADA);
      const cursor = await positionOf(backend);
      for (const text of texts) {
        const error = await refusal(backend, `select * from outbox.events_since('${cursor}', '${text}')`);
        assert.equal(error.code, '42501', `${text}: ${error.message}`);
      }
      await backend.end();
    }
  });

  test('nobody signed in', async () => {
    await setup();
    const backend = await connect(cluster);
    await backend.query('set role authenticated');
    const cursor = await positionOf(backend);
    assert.equal((await refusal(backend, `select * from outbox.events_since('${cursor}', 'north')`)).code, '42501');
    await backend.query("reset role; set role anon");
    assert.equal((await refusal(backend, 'select outbox.cursor()')).code, '42501', 'a role that was not named');
    await backend.end();
  });

  test('a function that is gone lets nobody in', async () => {
    await client.query(`create function public.fleeting(org text) returns boolean language sql as 'select true'`);
    await setup({ membership: "'public.fleeting'" });
    const backend = await signedIn(ADA);
    const call = `select * from outbox.events_since('${await positionOf(backend)}', 'north')`;
    await backend.query(call);
    await client.query('drop function public.fleeting cascade');
    assert.equal((await refusal(backend, call)).code, '42501');
    await client.query("create function public.fleeting(org text) returns integer language sql as 'select 1'");
    assert.equal((await refusal(backend, call)).code, '42501', 'another function of the name');
    await client.query('drop function public.fleeting');
    await backend.end();
  });

  test('a function that says null, and one that is only for the owner', async () => {
    await client.query("create function public.unsure(org text) returns boolean language sql as 'select null::boolean'");
    await setup({ membership: "'public.unsure'" });
    const backend = await signedIn(ADA);
    const call = `select * from outbox.events_since('${await positionOf(backend)}', 'north')`;
    assert.equal((await refusal(backend, call)).code, '42501');
    await client.query(`create or replace function public.unsure(org text) returns boolean language sql as 'select true'`);
    await backend.query(call);
    await client.query('revoke execute on function public.unsure from public');
    assert.equal((await refusal(backend, call)).code, '42501');
    await backend.end();
    await setup();
    await client.query('drop function public.unsure');
  });
});

describe('nobody but the relay sends, and nobody else listens', () => {
  before(async () => {
    await setup();
    await client.query(`create policy careless_read on realtime.messages for select to public using (true);
      create policy careless_write on realtime.messages for all to public using (true) with check (true)`);
  });
  after(() => client.query('drop policy careless_read on realtime.messages; drop policy careless_write on realtime.messages'));

  test('by HTTP and by SQL', async () => {
    const exp = Math.floor(Date.now() / 1000) + 600;
    const token = signToken({ role: 'authenticated', sub: ADA, exp }, SECRET);
    const post = (/** @type {string} */ topic) =>
      fetch(`${realtime.url}/api/broadcast/${topic}/events/events?private=true`, {
        method: 'POST', headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' }, body: '{}',
      });
    assert.equal((await post('notifications:org_north')).status, 403);
    assert.equal((await post('another-channel')).status, 202, 'other channels are not ours to guard');
    const backend = await signedIn(ADA);
    const insert = "insert into realtime.messages (topic, extension) values ('notifications:org_north', 'broadcast')";
    assert.equal((await refusal(backend, insert)).code, '42501');
    await client.query(insert);
    assert.equal((await backend.query("update realtime.messages set payload = '{}' where topic like 'notifications:org%'")).rowCount, 0);
    assert.equal((await backend.query("update realtime.messages set payload = '{}' where topic = 'another-channel'")).rowCount, 0);
    await backend.query("select set_config('realtime.topic', 'another-channel', false)");
    const seen = await column(backend, "select topic from realtime.messages where topic like 'notifications:org%'");
    assert.deepEqual(seen, ['notifications:org_north'], 'a member reads their own');
    await backend.query(`set request.jwt.claims = '{"sub": "${BOB}"}'`);
    assert.deepEqual(await column(backend, "select topic from realtime.messages where topic like 'notifications:org%'"), []);
    await client.query('delete from realtime.messages');
    await backend.end();
  });

  test('strangers do not listen, although another policy lets everyone', async () => {
    await listening(BOB, ['north'], async ({ statuses }) => assert.match(statuses[0], /Unauthorized/));
  });
});

describe('once, again and undone', () => {
  test('the example of two lines, with a secret that was set before', async () => {
    await client.query(`select outbox.drop_sink(sink) from outbox.status;
      select outbox.set_secret('realtime', '${SECRET}')`);
    await client.query(`select outbox.setup_realtime('${realtime.url}', membership => 'hidden.is_member_text')`);
    await client.query("insert into job (org_id) values ('north')");
    await delivered(client);
  });

  test('again with the same changes nothing, with others replaces', async () => {
    await setup();
    const once = await surroundings();
    await setup();
    assert.deepEqual(await surroundings(), once);
    await setup({ membership: "'hidden.is_member_uuid'", roles: "'{anon}'", options: "'{\"window_ms\": 100}'" });
    const replaced = await surroundings();
    assert.ok(!replaced.join().includes('is_member_text') && !replaced.join().includes('authenticated=X'));
    const backend = await signedIn(ADA);
    assert.equal((await refusal(backend, 'select outbox.cursor()')).code, '42501');
    await backend.end();
    await setup();
    assert.deepEqual(await surroundings(), once);
  });

  test('two sinks: the members of either', async () => {
    await setup({ membership: "'hidden.is_member_bigint'" });
    await setup({ name: "'second'", membership: "'hidden.is_member_uuid'", roles: "'{anon,authenticated}'" });
    await listening(ADA, [ORGS.bigint.ada, ORGS.uuid.ada, ORGS.uuid.bob], async ({ statuses }) => {
      assert.deepEqual(statuses.slice(0, 2), ['SUBSCRIBED', 'SUBSCRIBED']);
      assert.match(statuses[2], /Unauthorized/);
    });
    await client.query("select outbox.drop_sink('second')");
    await listening(ADA, [ORGS.bigint.ada, ORGS.uuid.ada], async ({ statuses }) => {
      assert.equal(statuses[0], 'SUBSCRIBED');
      assert.match(statuses[1], /Unauthorized/);
    });
  });

  test('drop_sink takes back what was made, and not what was there', async () => {
    await client.query("select outbox.drop_sink('realtime'); grant usage on schema outbox to authenticated");
    const before = await surroundings();
    await setup();
    assert.notDeepEqual(await surroundings(), before);
    await client.query("select outbox.drop_sink('realtime')");
    assert.deepEqual(await surroundings(), before);
    await client.query('revoke usage on schema outbox from authenticated');
  });

  test('the credential: given, kept, the secret of the name, or Supabase’s setting', async () => {
    const credential = () => value(client, "select options - 'url' from _private.sinks");
    await client.query('delete from _private.secrets');
    await setup({ token: "'eyJa.b.c'", jwt_secret: 'null' });
    assert.deepEqual(await credential(), { secret: 'realtime' });
    await setup({ jwt_secret: 'null' });
    assert.deepEqual(await credential(), { secret: 'realtime' }, 'kept');
    await client.query("select outbox.drop_sink('realtime')");
    await setup({ jwt_secret: 'null' });
    assert.deepEqual(await credential(), { secret: 'realtime' }, 'a token, by its looks');
    await client.query(`select outbox.drop_sink('realtime'); delete from _private.secrets;
      set app.settings.jwt_secret = '${SECRET}'`);
    await setup({ jwt_secret: 'null' });
    assert.deepEqual(await credential(), { jwt_secret: 'realtime' });
    assert.equal(await value(client, 'select value from _private.secrets'), SECRET);
    await client.query('reset app.settings.jwt_secret');
    await setup({ jwt_secret: 'null', options: "'{\"key_file\": \"/etc/token\"}'" });
    assert.deepEqual(await credential(), { key_file: '/etc/token' });
    await setup();
    assert.deepEqual(await credential(), { jwt_secret: 'realtime' });
  });

  test('in a database without Realtime: the sink, and a word about the rest', async () => {
    await client.query('create database plain');
    const plain = await connect(cluster, { database: 'plain' });
    await plain.query("create extension pg_outbox; create function is_member(org text) returns boolean language sql as 'select true'");
    /** @type {any[]} */
    const notices = [];
    plain.on('notice', (notice) => notices.push(notice));
    await plain.query(`select outbox.setup_realtime('${realtime.url}', 'is_member', '${SECRET}')`);
    const [notice] = notices;
    assert.match(notice.message, /not in this database/);
    assert.match(notice.hint, /create policy .* on realtime\.messages for select to authenticated .*public\.is_member/);
    assert.equal(await value(plain, "select kind from _private.sinks"), 'realtime');
    const backend = await connect(cluster, { database: 'plain' });
    await backend.query('set role authenticated');
    await page(backend, await positionOf(backend), 'any');
    await backend.end();
    await plain.query("select outbox.drop_sink('realtime')");
    await plain.end();
    await client.query('drop database plain with (force)');
  });
});

describe('refused, and nothing is changed', () => {
  before(() => client.query(`
    create function public.no_boolean(org text) returns integer language sql as 'select 1';
    create function public.two(org text, other text) returns boolean language sql as 'select true';
    create function public.none() returns boolean language sql as 'select true';
    create function public.of_integer(org integer) returns boolean language sql as 'select true';
    create function public.many(org text) returns setof boolean language sql as 'select true';
    create function public.closed(org text) returns boolean language sql as 'select true';
    revoke execute on function public.closed from public`));

  /** @type {[given: Record<string, string>, code: string, url?: string][]} */
  const CALLS = [
    [{}, '22023', 'ftp://127.0.0.1/'],
    [{ membership: "'public.missing'" }, '42883'],
    ...['no_boolean', 'two', 'none', 'of_integer', 'many'].map((name) =>
      /** @type {[Record<string, string>, string]} */ ([{ membership: `'public.${name}'` }, '42809'])),
    [{ membership: "'public.closed'" }, '42501'],
    [{ roles: "'{nobody_of_this_name}'" }, '42704'],
    [{ roles: "'{}'" }, '22023'],
    [{ roles: 'null' }, '22023'],
    [{ roles: "'{authenticated,null}'" }, '42704'],
    [{ token: "'eyJa.b.c'" }, '22023'],
    [{ options: "'{\"secret\": \"x\"}'" }, '22023'],
    [{ jwt_secret: 'null', options: "'{\"secret\": \"no_such_secret\"}'" }, '42704'],
    [{ jwt_secret: 'null', options: "'{\"secret\": null}'" }, '22023'],
    [{ jwt_secret: "''" }, '22023'],
    [{ options: "'{\"url\": \"http://127.0.0.1\"}'" }, '22023'],
    [{ options: "'[]'" }, '22023'],
    [{ options: 'null' }, '22023'],
    [{ options: "'{\"windows_ms\": 1}'" }, '22023'],
    [{ name: "'Real Time'" }, '22023'],
    [{ name: 'null' }, '22023'],
    [{ name: `'${'x'.repeat(31)}'` }, '22023'],
  ];
  for (const [given, code, url] of CALLS) {
    test(JSON.stringify(url ?? given), async () => {
      const before = await surroundings();
      const whole = { membership: "'hidden.is_member_text'", jwt_secret: `'${SECRET}x'`, ...given };
      const parts = Object.entries(whole).map(([name, sql]) => `${name} => ${sql}`).join(', ');
      const error = await refusal(client, `select outbox.setup_realtime('${url ?? realtime.url}', ${parts})`);
      assert.equal(error.code, code, error.message);
      assert.match(error.message, /^[^A-Z]/);
      if (code !== '42883') assert.ok(error.hint, error.message);
      assert.ok(!`${error.message} ${error.detail} ${error.hint}`.includes(SECRET), 'the secret is out');
      assert.deepEqual(await surroundings(), before);
    });
  }

  test('no credential at all', async () => {
    await client.query("select outbox.drop_sink('realtime'); delete from _private.secrets");
    const before = await surroundings();
    const error = await refusal(client, `select outbox.setup_realtime('${realtime.url}', 'hidden.is_member_text')`);
    assert.equal(error.code, '28000');
    assert.match(error.hint ?? '', /set_secret\('realtime'/);
    assert.deepEqual(await surroundings(), before);
  });
});
