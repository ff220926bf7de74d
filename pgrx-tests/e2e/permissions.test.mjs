// @ts-check
/**
 * What the extension owns, and who may do what with it.
 *
 *  1. PUBLIC may do nothing: no schema, table, sequence or function of ours.
 *  2. Every object says what it is (COMMENT ON), columns included.
 *  3. Every function pins its search_path, or is in C and reads no name.
 *  4. Owning a table and EXECUTE on attach are both needed to attach it; neither is enough.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { column, connect, refusal } from './support/database.mjs';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {import('pg').Client} */
let client;
before(async () => {
  cluster = await startCluster();
  client = await connect(cluster);
  await client.query(`create role app login; grant create on database postgres to app;
    grant create on schema public to app; create extension pg_outbox`);
});
after(async () => {
  await client?.end();
  await cluster?.stop();
});

const OURS = `with ours as (select classid, objid from pg_depend
  where refclassid = 'pg_extension'::regclass and deptype = 'e'
    and refobjid = (select oid from pg_extension where extname = 'pg_outbox'))`;

test('PUBLIC is granted nothing', async () => {
  const granted = await column(client, `${OURS}
    select pg_describe_object(classid, objid, 0) || ': ' || privilege_type from (
      select classid, objid, proacl as acl, 'f' as kind, proowner as owner from ours join pg_proc p on p.oid = objid and classid = 'pg_proc'::regclass
      union all select classid, objid, relacl, case relkind when 'S' then 's' else 'r' end, relowner from ours join pg_class c on c.oid = objid and classid = 'pg_class'::regclass
      union all select classid, objid, nspacl, 'n', nspowner from ours join pg_namespace n on n.oid = objid and classid = 'pg_namespace'::regclass
      union all select classid, objid, typacl, 'T', typowner from ours join pg_type t on t.oid = objid and classid = 'pg_type'::regclass and typtype in ('d', 'e')
    ) o, aclexplode(coalesce(acl, acldefault(kind::"char", owner))) a where grantee = 0`);
  assert.deepEqual(granted, []);
});

test('everything says what it is', async () => {
  const silent = await column(client, `${OURS}
    select pg_describe_object(classid, objid, 0) from ours
    where obj_description(objid, (select relname from pg_class where oid = classid)) is null
      and classid in ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_namespace'::regclass)
    union all
    select pg_describe_object(classid, objid, attnum) from ours
    join pg_class c on c.oid = objid and classid = 'pg_class'::regclass and relkind in ('r', 'v', 'p')
    join pg_attribute a on attrelid = c.oid and attnum > 0 and not attisdropped
    where col_description(c.oid, attnum) is null
      and not exists (select from pg_inherits where inhrelid = c.oid)
    order by 1`);
  assert.deepEqual(silent, []);
});

test('every function pins its search_path', async () => {
  const loose = await column(client, `${OURS}
    select objid::regprocedure::text from ours join pg_proc p on p.oid = objid and classid = 'pg_proc'::regclass
    join pg_language l on l.oid = prolang
    where lanname not in ('c', 'internal')
      and not coalesce(proconfig && '{"search_path=pg_catalog, pg_temp"}', false)`);
  assert.deepEqual(loose, []);
});

test('there is something to look at', async () => {
  const [[functions, relations]] = await column(client, `${OURS}
    select count(*) filter (where classid = 'pg_proc'::regclass)::int,
           count(*) filter (where classid = 'pg_class'::regclass)::int from ours`);
  assert.ok(functions > 20 && relations > 20, `${functions} functions, ${relations} relations`);
});

test('attach needs the table and the function', async () => {
  await client.query('create table others (id int primary key, org_id text)');
  const app = await connect(cluster, { user: 'app' });
  await app.query('create table mine (id int primary key, org_id text)');
  assert.equal((await refusal(app, "select outbox.attach('mine')")).code, '42501');
  await client.query(`grant usage on schema outbox to app;
    grant execute on function outbox.attach(regclass, text, text, name, name[], name[], text[], name[]),
      outbox.detach(regclass) to app`);
  await app.query("select outbox.attach('mine')");
  const error = await refusal(app, "select outbox.attach('others')");
  assert.equal(error.code, '42501');
  assert.match(error.message, /owner/);
  await client.query("select outbox.attach('others')");
  assert.equal((await refusal(app, "select outbox.detach('others')")).code, '42501');
  await app.query("select outbox.detach('mine')");
  await app.end();
});

test('what schema _private held before keeps its privileges', async () => {
  await client.query('create database inhabited');
  const other = await connect(cluster, { database: 'inhabited' });
  await other.query(`create schema _private;
    create function _private.theirs() returns int language sql as 'select 1';
    create table _private.theirs (n int); grant select on _private.theirs to public;
    create extension pg_outbox`);
  const may = await column(other, `select has_function_privilege('app', '_private.theirs()', 'execute'),
    has_table_privilege('app', '_private.theirs', 'select'),
    has_table_privilege('app', '_private.outbox', 'select')`);
  assert.deepEqual(may, [[true, true, false]]);
  await other.end();
});

test('a search_path of the caller shadows nothing', async () => {
  const app = await connect(cluster, { user: 'app' });
  await app.query(`create schema trap;
    create function trap.format(text, variadic text[]) returns text language plpgsql as $$ begin raise 'trapped'; end $$;
    create function trap.lower(text) returns text language plpgsql as $$ begin raise 'trapped'; end $$;
    create function trap.now() returns timestamptz language plpgsql as $$ begin raise 'trapped'; end $$;
    create table trap.bait (id int primary key, org_id text);
    set search_path = trap, pg_catalog`);
  await app.query("select outbox.attach('bait')");
  await app.query("insert into bait values (1, 'x')");
  await app.end();
});

test('a role that was granted nothing may call, read and write nothing', async () => {
  const calls = await column(client, `
    select format('select %s(%s)', p.oid::regproc, (
      -- A strict function of nulls is never called, whoever may.
      select string_agg(format('%s::%s', case when not p.proisstrict then 'null'
          when a.type = 'uuid'::regtype then quote_literal(gen_random_uuid()) else '0' end,
          format_type(a.type, null)), ', ' order by a.place)
      from unnest(p.proargtypes) with ordinality a (type, place)))
    from pg_proc p
    where p.pronamespace in ('outbox'::regnamespace, '_private'::regnamespace)`);
  const relations = await column(client, `
    select c.oid::regclass::text, c.relkind from pg_class c
    where c.relnamespace in ('outbox'::regnamespace, '_private'::regnamespace)
      and c.relkind in ('r', 'v', 'S')`);
  const statements = calls.concat(relations.flatMap(([relation, kind]) => [
    `select * from ${relation}`,
    ...(kind === 'S' ? [`select nextval('${relation}')`, `select setval('${relation}', 1)`] : []),
    ...(kind === 'r' ? [`insert into ${relation} default values`, `delete from ${relation}`, `truncate ${relation}`, `do 'begin lock table ${relation}; end'`] : []),
  ]));
  assert.ok(calls.length > 80 && relations.length > 30, `${calls.length} functions, ${relations.length} relations`);
  await client.query('create role stranger login');
  const stranger = await connect(cluster, { user: 'stranger' });
  const attempt = async () => {
    const allowed = [];
    for (const sql of statements) {
      const code = await stranger.query(sql).then(() => 'accepted', ({ code: refused }) => refused);
      if (code !== '42501') allowed.push(`${code}: ${sql}`);
    }
    return allowed;
  };
  assert.deepEqual(await attempt(), []);
  // Whoever is given the schemas, to call one function, has got nothing else by it.
  await client.query('grant usage on schema outbox, _private to stranger');
  assert.deepEqual(await attempt(), []);
  await stranger.end();
  await client.query('drop owned by stranger; drop role stranger');
});

test('no text argument of any function is run as SQL', async () => {
  await client.query('create table public.canary (id int primary key, org_id text)');
  const hostile = ["x'; drop table public.canary; --", 'x"; drop table public.canary; --',
    "$$; drop table public.canary; --", "x\\'; drop table public.canary; --", '%s%I%L%1$s'];
  const functions = await column(client, `
    select p.oid::regproc::text,
           array(select format_type(a.type, null) from unnest(p.proargtypes) with ordinality a (type, place)
                 order by a.place)
    from pg_proc p
    where p.pronamespace = 'outbox'::regnamespace
      and p.proargtypes::oid[] && '{text,name,jsonb,name[],text[]}'::regtype[]::oid[]`);
  assert.ok(functions.length > 12, `${functions.length} functions`);
  for (const [name, types] of functions) {
    for (const text of hostile) {
      /** @type {Record<string, unknown>} */
      const values = {
        text, name: text, jsonb: JSON.stringify({ url: text, [text]: text }), 'text[]': [text], 'name[]': [text],
        regclass: 'public.canary', integer: 1, boolean: false,
      };
      const parameters = types.map((/** @type {string} */ type) => values[type] ?? null);
      const places = types.map((/** @type {string} */ type, /** @type {number} */ place) => `$${place + 1}::${type}`);
      const code = await client.query(`select ${name}(${places})`, parameters)
        .then(() => null, ({ code: refused }) => refused);
      // A syntax error, or an internal one, is a text that was taken for SQL.
      assert.ok(code === null || !/^(42601|XX)/.test(code), `${name}: ${code}`);
    }
  }
  assert.deepEqual(await column(client, "select to_regclass('public.canary') is not null"), [true]);
  await client.query('drop table public.canary');
});
