// @ts-check
/**
 * Capture against an oracle: a plpgsql trigger on the same tables that logs each change by the
 * rules of capture_contract, in a table that commits and rolls back with it.
 *
 *  1. Random transactions make the same events as the oracle, none missing, none twice.
 *  2. The events of each organisation stand in the order of the oracle's.
 *
 * The statements are chosen to be hard on capture: rows change hands all the time, keys change,
 * organisations are null, savepoints nest and roll back, transactions are prepared, sessions end.
 * A run is replayed by SEED=, and BUDGET_SECONDS= makes it deeper.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { connect } from './support/database.mjs';
import { randomFrom, seedOfThisRun } from './support/random.mjs';

const BUDGET_MS = 1000 * Number(process.env.BUDGET_SECONDS ?? 15);
const ORGANISATIONS = 4;
const KEYS = 60;
/** Compared this often, so that a failure is found near its cause. */
const TRANSACTIONS_A_ROUND = 25;

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
before(async () => {
  cluster = await startCluster({ settings: { max_prepared_transactions: 10 } });
  await cluster.psql(SCHEMA);
});
after(() => cluster.stop());

// Two shapes of table: a plain one whose oracle is a row trigger, and a partitioned one. Row
// triggers see a move between leaves as a deletion and an insertion, so the oracle of the second
// is a statement trigger, to which it is the update that it is.
const SCHEMA = `
create extension pg_outbox;
create table oracle (seq bigserial, org_id text, event text);

create table plain (id int primary key, org_id text, status text not null, note text);
create function plain_oracle() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    insert into oracle (org_id, event)
    select new.org_id, 'plain.created ' || new.id where new.org_id is not null;
  elsif tg_op = 'DELETE' then
    insert into oracle (org_id, event)
    select old.org_id, 'plain.deleted ' || old.id where old.org_id is not null;
  elsif (old.id, old.org_id, old.status) is distinct from (new.id, new.org_id, new.status) then
    insert into oracle (org_id, event)
    select old.org_id, 'plain.status_changed ' || old.id where old.org_id is not null;
    insert into oracle (org_id, event)
    select new.org_id, 'plain.status_changed ' || new.id
    where new.org_id is not null and (old.org_id, old.id) is distinct from (new.org_id, new.id);
  end if;
  return null;
end $$;
create trigger oracle after insert or update or delete on plain
  for each row execute function plain_oracle();
select outbox.attach('plain', watch => '{status}');

create table tree (id int, org_id text, status text not null, note text, primary key (id, status))
  partition by list (status);
create table tree_new partition of tree for values in ('new');
create table tree_busy (gone int, note text, status text not null, id int not null, org_id text);
alter table tree_busy drop column gone;
alter table tree attach partition tree_busy for values in ('busy');
create table tree_rest partition of tree default partition by hash (id);
create table tree_rest_0 partition of tree_rest for values with (modulus 2, remainder 0);
create table tree_rest_1 partition of tree_rest for values with (modulus 2, remainder 1);
create function tree_oracle() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    insert into oracle (org_id, event)
    select org_id, 'tree.created ' || id from new_rows where org_id is not null;
  elsif tg_op = 'DELETE' then
    insert into oracle (org_id, event)
    select org_id, 'tree.deleted ' || id from old_rows where org_id is not null;
  else
    insert into oracle (org_id, event)
    select side.org_id, 'tree.updated ' || side.id
    from (select row_number() over () as n, * from old_rows) o
    join (select row_number() over () as n, * from new_rows) w using (n)
    cross join lateral (values (1, o.org_id, o.id), (2, w.org_id, w.id)) as side (place, org_id, id)
    where (o.id, o.org_id, o.status, o.note) is distinct from (w.id, w.org_id, w.status, w.note)
      and side.org_id is not null
      and (side.place = 1 or (o.org_id, o.id) is distinct from (w.org_id, w.id))
    order by n, side.place;
  end if;
  return null;
end $$;
create trigger oracle_insert after insert on tree referencing new table as new_rows
  for each statement execute function tree_oracle();
create trigger oracle_delete after delete on tree referencing old table as old_rows
  for each statement execute function tree_oracle();
create trigger oracle_update after update on tree referencing old table as old_rows new table as new_rows
  for each statement execute function tree_oracle();
select outbox.attach('tree', key_columns => '{id}');
`;

/** @typedef {import('./support/random.mjs').Random} Random */

/** @param {Random} random */
function organisation(random) {
  return random.chance(12) ? 'null' : `'org-${random.below(ORGANISATIONS)}'`;
}

/** @param {Random} random */
const status = (random) => random.pick(["'new'", "'busy'", "'done'", "'lost'"]);

/** One row, a few, or all of them. @param {Random} random */
function where(random) {
  const id = random.below(KEYS);
  return random.pick([
    `id = ${id}`, `id between ${id} and ${id + 5}`, `id % ${2 + random.below(4)} = 0`,
    `org_id = 'org-${random.below(ORGANISATIONS)}'`, random.chance(20) ? 'true' : `id < ${id}`,
  ]);
}

/** Moves each row to the next organisation, through none. */
const NEXT_ORGANISATION = `case when org_id is null then 'org-0' when org_id = 'org-${ORGANISATIONS - 1}' then null
  else 'org-' || (right(org_id, 1)::int + 1) end`;

/** @param {Random} random */
function change(random) {
  const table = random.pick(['plain', 'tree']);
  const id = random.below(KEYS);
  const other = random.below(KEYS);
  const insert = `insert into ${table} select i, ${organisation(random)}, ${status(random)}, null
    from generate_series(${id}, ${id + random.below(6)}) i
    where not exists (select from ${table} t where t.id = i)`;
  const general = [
    insert, insert,
    `update ${table} set org_id = ${organisation(random)} where ${where(random)}`,
    `update ${table} set org_id = ${NEXT_ORGANISATION} where ${where(random)}`,
    `update ${table} set org_id = ${NEXT_ORGANISATION}, status = ${status(random)} where ${where(random)}`,
    `update ${table} set status = ${status(random)} where ${where(random)}`,
    `update ${table} set note = md5(id::text) where ${where(random)}`,
    `update ${table} set org_id = org_id, status = status where ${where(random)}`,
    `update ${table} set id = ${id} where id = ${other}
       and not exists (select from ${table} where id = ${id})`,
    `update ${table} set id = ${id}, org_id = ${NEXT_ORGANISATION} where id = ${other}
       and not exists (select from ${table} where id = ${id})`,
    `delete from ${table} where id = ${id} or (${where(random)} and id % 3 = 1)`,
  ];
  // Across the actions of one statement the oracle of the tree sees another order than the rows'.
  const forPlain = [
    `insert into plain values (${id}, ${organisation(random)}, ${status(random)})
       on conflict (id) do update set org_id = excluded.org_id, status = excluded.status`,
    `merge into plain p using generate_series(${id}, ${id + 4}) i on p.id = i
       when matched and i % 3 = 0 then delete
       when matched then update set org_id = ${organisation(random)}
       when not matched then insert values (i, ${organisation(random)}, ${status(random)})`,
    `with gone as (delete from plain where id = ${id} returning *)
       insert into plain select id + ${KEYS}, ${organisation(random)}, status from gone
       where not exists (select from plain p where p.id = gone.id + ${KEYS})`,
    `do $$ begin
       for i in ${id}..${id + 4} loop
         begin
           update plain set org_id = ${NEXT_ORGANISATION} where id = i;
           if i % 2 = 0 then raise 'no'; end if;
         exception when others then update plain set status = ${status(random)} where id = i;
         end;
       end loop; end $$`,
  ];
  return random.chance(30) ? random.pick(forPlain) : random.pick(general);
}

/** The statements of one random transaction. @param {Random} random @param {string} name */
function transaction(random, name) {
  if (random.chance(25)) return [change(random)];
  const statements = ['begin'];
  /** @type {string[]} */
  const open = [];
  for (let count = 1 + random.below(8); count > 0; count -= 1) {
    if (random.chance(30)) {
      open.push(`s${open.length}`);
      statements.push(`savepoint ${open.at(-1)}`);
    }
    statements.push(change(random));
    if (open.length > 0 && random.chance(30)) {
      const level = random.below(open.length);
      const released = random.chance(50);
      statements.push(`${released ? 'release' : 'rollback to'} ${open[level]}`);
      open.length = released ? level : level + 1;
    }
  }
  const end = random.pick(['commit', 'commit', 'commit', 'rollback', 'prepared']);
  if (end !== 'prepared') return [...statements, end];
  const outcome = random.chance(70) ? 'commit' : 'rollback';
  return [...statements, `prepare transaction '${name}'`, `${outcome} prepared '${name}'`];
}

/**
 * Each organisation's events, as the oracle saw them and as they were captured.
 *
 * @param {import('pg').Client} client
 */
async function compare(client) {
  const read = async (/** @type {string} */ sql) => {
    const { rows } = await client.query(sql);
    return Object.fromEntries(rows.map(({ org_id, events }) => [org_id, events]));
  };
  const expected = await read(
    'select org_id, array_agg(event order by seq) as events from oracle group by 1');
  const captured = await read(`
    select org_id, array_agg(event_type || ' ' || (ids ->> (split_part(event_type, '.', 1) || '_id'))
                             order by entry_id, place) as events
    from outbox.events group by 1`);
  assert.deepEqual(Object.keys(captured).sort(), Object.keys(expected).sort());
  for (const [name, events] of Object.entries(expected)) {
    const at = events.findIndex((/** @type {string} */ event, /** @type {number} */ index) =>
      captured[name][index] !== event);
    const from = Math.max(0, (at < 0 ? events.length : at) - 3);
    assert.deepEqual(captured[name].slice(from, from + 12), events.slice(from, from + 12),
      `${name} differs from event ${from} on`);
    assert.equal(captured[name].length, events.length, `the number of events of ${name}`);
  }
  return Object.values(expected).reduce((sum, events) => sum + events.length, 0);
}

/** Forgets what was compared, so that a long run stays as quick as a short one. @param {import('pg').Client} client */
async function forget(client) {
  await client.query('truncate oracle; truncate _private.outbox');
}

test('random transactions make the events of the oracle, in its order', async () => {
  const random = randomFrom(seedOfThisRun());
  const deadline = Date.now() + BUDGET_MS;
  let client = await connect(cluster);
  let transactions = 0;
  let events = 0;
  while (Date.now() < deadline) {
    for (let turn = 0; turn < TRANSACTIONS_A_ROUND; turn += 1) {
      const statements = transaction(random, `t${(transactions += 1)}`);
      for (const sql of statements) await client.query(sql);
    }
    events += await compare(client);
    await forget(client);
    if (random.chance(20)) {
      await client.end();
      client = await connect(cluster);
    }
  }
  await client.end();
  console.log(`${transactions} transactions, ${events} events`);
  assert.ok(events > 1000, `only ${events} events were compared`);
});

test('rows that change hands one by one, heavily', async () => {
  const client = await connect(cluster);
  await client.query('truncate plain; truncate oracle; truncate _private.outbox');
  await client.query("insert into plain select i, 'org-0', 'new' from generate_series(1, 40) i");
  for (let round = 0; round < 150; round += 1) {
    const key = 1 + (round * 7) % 40;
    await client.query(`update plain set org_id = ${NEXT_ORGANISATION} where id = ${key}`);
    await client.query(`update plain set org_id = ${NEXT_ORGANISATION} where id % 10 = ${round % 10}`);
  }
  assert.ok((await compare(client)) > 800);
  await client.end();
});
