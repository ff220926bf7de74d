// @ts-check
/**
 * Which events a change makes.
 *
 *  1. Each kind of statement makes exactly the events of the rows that it changed.
 *  2. An UPDATE makes one event for each distinct (organisation, key) of the old and the new row,
 *     the old identity first; a side without an organisation makes none.
 *  3. An UPDATE that changes no watched column, no key and no organisation makes none.
 *  4. A row that moves between partitions is one update, wherever the statement was addressed.
 *  5. An event is there if and only if its change committed: savepoints, EXCEPTION blocks,
 *     procedures, deferred triggers, prepared transactions.
 *  6. Events of one organisation stand in the order in which its rows changed.
 *  7. Whoever may write the table may be captured; capture gives them no right.
 *
 * What would break silently: a client that never hears of a change, or hears of one that was
 * rolled back, and shows stale rows as the truth.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { JOB, eventsByOrganisation, runCase } from './support/capture_case.mjs';
import { connect, refusal, storedEvents, value } from './support/database.mjs';

/** @typedef {import('./support/capture_case.mjs').Case} Case */

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
before(async () => {
  cluster = await startCluster({ settings: { max_prepared_transactions: 10 } });
  await cluster.psql('create extension pg_outbox; create role writer login;');
});
after(() => cluster.stop());

/** @param {string} name @param {Case} spec */
const captures = (name, spec) => test(name, () => runCase(cluster, spec));

const WATCH_STATUS = "select outbox.attach('job', watch => '{status}')";
const TWO_JOBS = "insert into job values (1, :a, 'new'), (2, :b, 'new')";

describe('statements', () => {
  captures('INSERT of one row', {
    run: 'insert into job values (1, :a)',
    expect: { a: ['created 1'] },
  });
  captures('INSERT of many rows of two organisations keeps the order of each', {
    run: `insert into job select i, (array[:a, :b]::uuid[])[1 + i % 2] from generate_series(1, 6) i`,
    expect: { a: ['created 2', 'created 4', 'created 6'], b: ['created 1', 'created 3', 'created 5'] },
  });
  captures('INSERT of no row', {
    run: 'insert into job select 1, :a where false',
    expect: {},
  });
  captures('COPY', {
    act: async ({ cluster, schema, fill }) => {
      const rows = [`1\t:a\tnew\t\\N`, `2\t:b\tnew\t\\N`, `3\t:a\tnew\t\\N`];
      const raw = fill(rows.join('\n')).replaceAll("'", '');
      await cluster.psql(`copy ${schema}.job from stdin;\n${raw}\n\\.\n`);
    },
    expect: { a: ['created 1', 'created 3'], b: ['created 2'] },
  });
  captures('UPDATE', {
    given: TWO_JOBS,
    run: ["update job set status = 'done' where id = 1", "update job set note = 'x'"],
    expect: { a: ['updated 1', 'updated 1'], b: ['updated 2'] },
  });
  captures('UPDATE that changes nothing', {
    given: TWO_JOBS,
    run: 'update job set status = status, note = note',
    expect: {},
  });
  captures('DELETE', {
    given: TWO_JOBS,
    run: 'delete from job',
    expect: { a: ['deleted 1'], b: ['deleted 2'] },
  });
  captures('ON CONFLICT: inserts, updates, does nothing', {
    given: TWO_JOBS,
    run: [
      "insert into job values (1, :a, 'done'), (3, :a, 'new') on conflict (id) do update set status = excluded.status",
      "insert into job values (2, :b, 'done') on conflict do nothing",
      'insert into job values (1, :a) on conflict (id) do update set status = job.status',
    ],
    expect: { a: ['updated 1', 'created 3'] },
  });
  captures('MERGE keeps the order of the rows across its actions', {
    given: 'insert into job select i, :a from generate_series(1, 4) i',
    run: `merge into job using (select i, i % 3 as what from generate_series(1, 6) i order by i) s on id = s.i
      when matched and what = 0 then delete
      when matched then update set status = 'done'
      when not matched then insert values (s.i, :a)`,
    expect: {
      a: ['updated 1', 'updated 2', 'deleted 3', 'updated 4', 'created 5', 'created 6'],
    },
  });
  captures('a data-modifying WITH', {
    given: TWO_JOBS,
    run: `with gone as (delete from job where id = 1 returning org_id)
      insert into job select 3, org_id from gone`,
    expect: { a: ['deleted 1', 'created 3'] },
  });
  captures('a BEFORE trigger has the last word on the row', {
    table: `${JOB};
      create function another_key() returns trigger language plpgsql as $$
      begin new.id := new.id + 100; return case when new.id = 103 then null else new end; end $$;
      create trigger another_key before insert on job for each row execute function another_key()`,
    run: 'insert into job select i, :a from generate_series(1, 4) i',
    expect: { a: ['created 101', 'created 102', 'created 104'] },
  });
  captures('only the kinds that were asked for', {
    attach: "select outbox.attach('job', events => '{insert,delete}')",
    run: ['insert into job values (1, :a)', "update job set status = 'done'", 'delete from job'],
    expect: { a: ['created 1', 'deleted 1'] },
  });
  captures('TRUNCATE passes, warns and makes no event', {
    given: TWO_JOBS,
    act: async ({ client, query, schema }) => {
      /** @type {any[]} */
      const notices = [];
      client.on('notice', (notice) => notices.push(notice));
      await query('truncate job');
      assert.deepEqual(notices.map(({ severity }) => severity), ['WARNING']);
      assert.match(notices[0].message, /job/);
      assert.equal(await value(client, `select count(*)::int from ${schema}.job`), 0);
    },
    expect: {},
  });
});

describe('cascades', () => {
  const parent = `create table batch (id int primary key);
    create table job (id int primary key, org_id uuid, batch int references batch`;
  const given = 'insert into batch values (1), (2); insert into job values (1, :a, 1), (2, :b, 1), (3, :a, 2)';
  captures('ON DELETE CASCADE', {
    table: `${parent} on delete cascade)`,
    given,
    run: 'delete from batch where id = 1',
    expect: { a: ['deleted 1'], b: ['deleted 2'] },
  });
  captures('ON DELETE SET NULL', {
    table: `${parent} on delete set null)`,
    given,
    run: 'delete from batch where id = 2',
    expect: { a: ['updated 3'] },
  });
  captures('ON UPDATE CASCADE', {
    table: `${parent} on update cascade)`,
    given,
    run: 'update batch set id = 7 where id = 1',
    expect: { a: ['updated 1'], b: ['updated 2'] },
  });
});

describe('watched columns', () => {
  captures('one watched column names the event after it', {
    attach: WATCH_STATUS,
    given: TWO_JOBS,
    run: ["update job set status = 'done' where id = 1", "update job set note = 'x'"],
    expect: { a: ['status_changed 1'] },
  });
  captures('of two watched columns either makes an update', {
    attach: "select outbox.attach('job', watch => '{status,note}')",
    given: TWO_JOBS,
    run: ["update job set status = 'done' where id = 1", "update job set note = 'x' where id = 2"],
    expect: { a: ['updated 1'], b: ['updated 2'] },
  });
  captures('from and to null is a change', {
    attach: "select outbox.attach('job', watch => '{note}')",
    given: TWO_JOBS,
    run: ["update job set note = 'x' where id = 1", 'update job set note = null'],
    expect: { a: ['note_changed 1', 'note_changed 1'] },
  });
  captures('wide values that are stored out of line', {
    attach: "select outbox.attach('job', watch => '{note}')",
    given: `insert into job values (1, :a, 'new', (select string_agg(md5(i::text), '') from generate_series(1, 2000) i))`,
    run: [
      "update job set status = 'touched'",
      "update job set note = (select string_agg(md5(i::text), '') from generate_series(1, 2000) i)",
      "update job set note = overlay(note placing '!' from 30000 for 1)",
    ],
    expect: { a: ['note_changed 1'] },
  });
  captures('a BEFORE trigger changes a watched column that the statement does not name', {
    table: `${JOB};
      create function touch() returns trigger language plpgsql as $$
      begin new.status := 'touched'; return new; end $$;
      create trigger touch before update on job for each row execute function touch()`,
    attach: WATCH_STATUS,
    given: TWO_JOBS,
    run: "update job set note = 'x' where id = 1",
    expect: { a: ['status_changed 1'] },
  });
});

describe('organisations and keys that change', () => {
  captures('an organisation that changes tells both', {
    given: TWO_JOBS,
    run: 'update job set org_id = :b where id = 1',
    expect: { a: ['updated 1'], b: ['updated 1'] },
  });
  captures('a watched column does not hide a change of organisation', {
    attach: WATCH_STATUS,
    given: TWO_JOBS,
    run: 'update job set org_id = :b where id = 1',
    expect: { a: ['status_changed 1'], b: ['status_changed 1'] },
  });
  captures('rows without an organisation', {
    given: TWO_JOBS,
    run: [
      'insert into job values (3, null)',
      "update job set status = 'done' where id = 3",
      'update job set org_id = null where id = 1',
      'update job set org_id = :c where id = 3',
      'update job set org_id = null where id = 3',
      'delete from job where id = 3',
    ],
    expect: { a: ['updated 1'], c: ['updated 3', 'updated 3'] },
  });
  captures('a key that changes tells the old one and the new one', {
    given: TWO_JOBS,
    run: 'update job set id = 9 where id = 1',
    expect: { a: ['updated 1', 'updated 9'] },
  });
  captures('a watched column does not hide a change of key', {
    attach: WATCH_STATUS,
    given: TWO_JOBS,
    run: 'update job set id = 9 where id = 1',
    expect: { a: ['status_changed 1', 'status_changed 9'] },
  });
  captures('a key and an organisation that change at once', {
    given: TWO_JOBS,
    run: 'update job set id = 9, org_id = :b where id = 1',
    expect: { a: ['updated 1'], b: ['updated 9'] },
  });
  captures('many rows that change hands, there and back', {
    given: 'insert into job select i, :a from generate_series(1, 200) i',
    run: [
      'update job set org_id = :b where id % 2 = 0',
      ...[1, 2, 3, 4].map((id) =>
        `update job set org_id = case org_id when :a then :b::uuid else :a::uuid end where id = ${id}`),
    ],
    expect: {
      a: [...evens(200), ...['updated 1', 'updated 2', 'updated 3', 'updated 4']],
      b: [...evens(200), ...['updated 1', 'updated 2', 'updated 3', 'updated 4']],
    },
  });
});

/** @param {number} last */
function evens(last) {
  return Array.from({ length: last / 2 }, (_, index) => `updated ${2 * index + 2}`);
}

describe('partitions', () => {
  const tree = `create table job (id int, org_id uuid, status text not null default 'new', primary key (id, status))
      partition by list (status);
    create table job_new partition of job for values in ('new');
    create table job_done (gone int, status text not null, org_id uuid, id int not null);
    alter table job_done drop column gone;
    alter table job attach partition job_done for values in ('done')`;
  const attach = "select outbox.attach('job', key_columns => '{id}')";
  captures('every statement at the root', {
    table: tree,
    attach,
    run: [
      "insert into job values (1, :a, 'new'), (2, :b, 'done')",
      'update job set org_id = :a where id = 2',
      'delete from job where id = 1',
      'delete from job',
    ],
    expect: {
      a: ['created 1', 'updated 2', 'deleted 1', 'deleted 2'],
      b: ['created 2', 'updated 2'],
    },
  });
  captures('every statement at the leaves', {
    table: tree,
    attach,
    run: [
      'insert into job_new values (1, :a)',
      "insert into job_done (id, org_id, status) values (2, :b, 'done')",
      'update job_done set org_id = :a',
      'delete from job_new',
      'delete from job_done',
    ],
    expect: {
      a: ['created 1', 'updated 2', 'deleted 1', 'deleted 2'],
      b: ['created 2', 'updated 2'],
    },
  });
  captures('a row that moves between leaves is one update', {
    table: tree,
    attach,
    given: 'insert into job values (1, :a), (2, :b), (3, :a)',
    run: ["update job set status = 'done' where id < 3", "update job set status = 'new' where id = 1"],
    expect: { a: ['updated 1', 'updated 1'], b: ['updated 2'] },
  });
  captures('a row that moves between leaves and organisations', {
    table: tree,
    attach,
    given: 'insert into job values (1, :a)',
    run: "update job set status = 'done', org_id = :b",
    expect: { a: ['updated 1'], b: ['updated 1'] },
  });
  // The leaf of 'done' comes first in the order of bounds, and its rows stay where they are.
  captures('moves among other changes keep the order of the rows', {
    table: tree,
    attach,
    given: "insert into job select i, :a, case when i % 2 = 0 then 'new' else 'done' end from generate_series(1, 6) i",
    run: "update job set status = 'done', org_id = :b",
    expect: {
      a: ['updated 1', 'updated 3', 'updated 5', 'updated 2', 'updated 4', 'updated 6'],
      b: ['updated 1', 'updated 3', 'updated 5', 'updated 2', 'updated 4', 'updated 6'],
    },
  });
  captures('a move that the new leaf turns away is a deletion', {
    table: `${tree};
      create function no() returns trigger language plpgsql as $$ begin return null; end $$;
      create trigger no before insert on job_done for each row execute function no()`,
    attach,
    given: 'insert into job values (1, :a), (2, :a)',
    run: "update job set status = 'done' where id = 1",
    expect: { a: ['deleted 1'] },
  });
  captures('a move that only the partition key tells, of a column nobody watches', {
    table: `create table job (id int, org_id uuid, status text, month int, primary key (id, month)) partition by list (month);
      create table job_1 partition of job for values in (1);
      create table job_2 partition of job for values in (2)`,
    attach: "select outbox.attach('job', key_columns => '{id}', watch => '{status}')",
    given: "insert into job values (1, :a, 'new', 1)",
    run: 'update job set month = 2',
    expect: {},
  });
  captures('a leaf that joins later', {
    table: tree,
    attach,
    run: [
      "create table job_late partition of job for values in ('late')",
      "insert into job values (1, :a, 'late')",
      "insert into job_late values (2, :a, 'late')",
    ],
    expect: { a: ['created 1', 'created 2'] },
  });
  captures('leaves of leaves', {
    table: `create table job (id int, org_id uuid, status text, primary key (id, status)) partition by list (status);
      create table job_new partition of job for values in ('new') partition by range (id);
      create table job_low partition of job_new for values from (0) to (10);
      create table job_high partition of job_new for values from (10) to (20)`,
    attach,
    run: ["insert into job values (1, :a, 'new')", 'update job set id = 11', 'delete from job_high'],
    expect: { a: ['created 1', 'updated 1', 'updated 11', 'deleted 11'] },
  });
});

describe('shapes of tables', () => {
  captures('a composite key', {
    table: 'create table job (shelf text, no int, org_id uuid, status text, primary key (shelf, no))',
    run: ["insert into job values ('x', 7, :a)", "update job set status = 'done'"],
    expect: { a: ['created {"no":7,"shelf":"x"}', 'updated {"no":7,"shelf":"x"}'] },
  });
  captures('a key that is not called id keeps its name', {
    table: 'create table job (code text primary key, org_id uuid)',
    run: "insert into job values ('x', :a)",
    expect: { a: ['created {"code":"x"}'] },
  });
  captures('key columns that are not the primary key', {
    table: 'create table job (id int primary key, ref uuid, org_id uuid)',
    attach: "select outbox.attach('job', key_columns => '{ref}')",
    run: "insert into job values (1, '00000000-0000-0000-0000-000000000001', :a)",
    expect: { a: ['created {"ref":"00000000-0000-0000-0000-000000000001"}'] },
  });
  for (const [type, literal, written] of [
    ['uuid', "'7F3A0000-0000-0000-0000-00000000000a'", '7f3a0000-0000-0000-0000-00000000000a'],
    ['smallint', '-7', '-7'],
    ['int', '2147483647', '2147483647'],
    ['bigint', '9007199254740992', '9007199254740992'],
    ['date', "'2026-02-28'", '2026-02-28'],
    ['varchar(40)', "'Überzug'", 'Überzug'],
  ]) {
    captures(`a key of type ${type}`, {
      table: `create table job (id ${type} primary key, org_id uuid)`,
      run: `insert into job values (${literal}, :a)`,
      expect: { a: [`created ${written}`] },
    });
  }
  captures('domains of keys and organisations', {
    table: `create domain job_no as int check (value > 0); create domain job_ref as job_no;
      create domain org as uuid;
      create table job (id job_ref primary key, org_id org)`,
    run: ['insert into job values (5, :a)', 'delete from job'],
    expect: { a: ['created 5', 'deleted 5'] },
  });
  captures('quoted names', {
    table: `create table "Job ""Ünit"" " ("Key Col" int primary key, "Org-Id" uuid, "sta'tus" text)`,
    attach: `select outbox.attach('"Job ""Ünit"" "', entity => 'job', org_column => 'Org-Id', watch => '{"sta''tus"}')`,
    run: [
      `insert into "Job ""Ünit"" " values (1, :a)`,
      `update "Job ""Ünit"" " set "sta'tus" = 'x'`,
    ],
    expect: { a: ['created {"Key Col":1}', 'sta_tus_changed {"Key Col":1}'] },
  });
  captures('a table outside the search path', {
    table: 'create schema if not exists "Other Schema"; create table "Other Schema".job (id int primary key, org_id uuid)',
    attach: `select outbox.attach('"Other Schema".job')`,
    run: ['insert into "Other Schema".job values (1, :a)', 'drop table "Other Schema".job'],
    expect: { a: ['created 1'] },
  });
  captures('generated and identity columns', {
    table: `create table job (id bigint generated always as identity primary key, org_id uuid, title text,
      size int generated always as (length(title)) stored)`,
    attach: "select outbox.attach('job', watch => '{size}')",
    run: [
      "insert into job (org_id, title) values (:a, 'abc')",
      "update job set title = 'xyz'",
      "update job set title = 'wxyz'",
    ],
    expect: { a: ['created 1', 'size_changed 1'] },
  });
  for (const [type, a, b] of [['bigint', '42', '-9000000000'], ['int', '7', '8'], ['text', "o'r\"g ü", 'x']]) {
    captures(`organisations of type ${type}`, {
      organisations: () => ({ a, b }),
      table: `create table job (id int primary key, org_id ${type})`,
      run: ['insert into job values (1, :a), (2, :b)', 'update job set org_id = :b where id = 1',
        'drop table job'],
      expect: { a: ['created 1', 'updated 1'], b: ['created 2', 'updated 1'] },
    });
  }
  captures('columns that were dropped and added', {
    table: `create table job (x int, id int primary key, y text, org_id uuid);
      alter table job drop column x, drop column y, add column status text not null default 'old'`,
    attach: WATCH_STATUS,
    run: ['insert into job values (1, :a)', "update job set status = 'new'"],
    expect: { a: ['created 1', 'status_changed 1'] },
  });
});

test('text keys arrive as they are, whatever is in them', async () => {
  const client = await connect(cluster);
  await client.query('create table oddity (id text primary key, org_id text)');
  await client.query("select outbox.attach('oddity')");
  const keys = ['quote " back \\ slash', 'new\nline\ttab', 'Ünïcödé 🎉', '\u0001', '', 'x'.repeat(100_000), '{"a":[1]}'];
  for (const key of keys) {
    await client.query('insert into oddity values ($1, $2)', [key, 'oddities']);
  }
  const events = await storedEvents(client, ['oddities']);
  assert.deepEqual(events.map(({ ids }) => ids.oddity_id), keys);
  await client.end();
});

test('numbers are JSON numbers to 2^53, and text beyond', async () => {
  const client = await connect(cluster);
  await client.query('create table number (id bigint primary key, org_id text)');
  await client.query("select outbox.attach('number')");
  const written = ['0', '-1', '9007199254740992', '9007199254740993', '-9223372036854775808'];
  for (const id of written) await client.query('insert into number values ($1, $2)', [id, 'numbers']);
  const ids = (await storedEvents(client, ['numbers'])).map((event) => event.ids.number_id);
  assert.deepEqual(ids, [0, -1, 9007199254740992, '9007199254740993', '-9223372036854775808']);
  await client.end();
});

describe('transactions', () => {
  captures('ROLLBACK', {
    run: ['begin', 'insert into job values (1, :a)', 'rollback'],
    expect: {},
  });
  captures('a statement that fails takes its transaction with it', {
    act: async ({ query }) => {
      await query('begin');
      await query('insert into job values (1, :a)');
      await assert.rejects(query('insert into job values (1, :a)'), { code: '23505' });
      await query('commit');
    },
    expect: {},
  });
  captures('savepoints, nested, released and rolled back', {
    run: [
      'begin',
      'insert into job values (1, :a)',
      'savepoint one', 'insert into job values (2, :a)',
      'savepoint two', 'insert into job values (3, :a)',
      'rollback to two', 'insert into job values (4, :a)',
      'release one', 'insert into job values (5, :a)',
      'savepoint three', 'insert into job values (6, :b)',
      'rollback to three', 'rollback to three', 'insert into job values (7, :a)',
      'commit',
    ],
    expect: { a: [1, 2, 4, 5, 7].map((id) => `created ${id}`) },
  });
  captures('a session whose first captured change is inside a savepoint', {
    act: async ({ another }) => {
      const { query } = await another();
      for (const sql of ['begin', 'savepoint whole', 'savepoint part', 'insert into job values (1, :a)',
        'rollback to part', 'insert into job values (2, :a)', 'release whole', 'commit']) await query(sql);
    },
    expect: { a: ['created 2'] },
  });
  captures('EXCEPTION blocks', {
    run: `do $$ begin
      for i in 1..20 loop
        begin
          insert into job values (i, :a);
          if i % 4 <> 0 then raise 'no'; end if;
        exception when others then
          insert into job values (i, :b);
          if i % 4 = 1 then null; end if;
        end;
      end loop; end $$`,
    expect: {
      a: [4, 8, 12, 16, 20].map((id) => `created ${id}`),
      b: [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19].map((id) => `created ${id}`),
    },
  });
  captures('procedures that commit and roll back', {
    run: `do $$ begin
      for i in 1..6 loop
        insert into job values (i, :a);
        if i % 3 = 0 then rollback; else commit; end if;
      end loop; end $$`,
    expect: { a: [1, 2, 4, 5].map((id) => `created ${id}`) },
  });
  captures('a deferred trigger that changes the table at commit', {
    table: `${JOB};
      create function finish() returns trigger language plpgsql as $$
      begin update job set status = 'done' where id = new.id; return null; end $$;
      create constraint trigger finish after insert on job deferrable initially deferred
        for each row execute function finish()`,
    run: ['begin', 'insert into job values (1, :a)', 'insert into job values (2, :a)', 'commit'],
    expect: { a: ['created 1', 'created 2', 'updated 1', 'updated 2'] },
  });
  captures('a deferred constraint that fails the commit', {
    table: 'create table job (id int primary key, org_id uuid, no int unique deferrable initially deferred)',
    act: async ({ query }) => {
      await query('begin');
      await query('insert into job values (1, :a, 1), (2, :a, 1)');
      await assert.rejects(query('commit'), { code: '23505' });
      await query('insert into job values (3, :a, 3)');
    },
    expect: { a: ['created 3'] },
  });
  captures('prepared transactions', {
    act: async (world) => {
      const { client, query, schema } = world;
      for (const [name, id] of [['kept', 1], ['lost', 2]]) {
        await query('begin');
        await query(`insert into job values (${id}, :a)`);
        await query(`prepare transaction '${schema}_${name}'`);
      }
      await query('insert into job values (3, :a)');
      assert.deepEqual((await eventsByOrganisation(world)).a, ['created 3'], 'before they end');
      await query(`commit prepared '${schema}_kept'`);
      await query(`rollback prepared '${schema}_lost'`);
      const kept = await storedEvents(client, [world.organisations.a]);
      assert.equal(kept.length, 2);
    },
    // Ids are taken when the transaction is prepared, under its row locks.
    expect: { a: ['created 1', 'created 3'] },
  });
  captures('events come with their commit, not inside their transaction', {
    act: async (world) => {
      await world.query('begin');
      await world.query('insert into job values (1, :a)');
      assert.deepEqual((await eventsByOrganisation(world)).a, []);
      await world.query('commit');
    },
    expect: { a: ['created 1'] },
  });
  captures('a table that is made, attached, changed and dropped in one transaction', {
    table: '', attach: '',
    run: ['begin', JOB, "select outbox.attach('job')", 'insert into job values (1, :a)',
      "update job set status = 'done'", 'drop table job', 'commit'],
    expect: { a: ['created 1', 'updated 1'] },
  });
  captures('SERIALIZABLE, cursors that outlive the transaction, temporary tables', {
    run: ['begin isolation level serializable', 'insert into job values (1, :a)',
      'declare later cursor with hold for select id from job', 'create temp table t (x int) on commit drop',
      'commit', 'fetch all from later'],
    expect: { a: ['created 1'] },
  });
  captures('several statements in one message are one transaction', {
    run: 'insert into job values (1, :a); update job set note = $$x$$; delete from job',
    expect: { a: ['created 1', 'updated 1', 'deleted 1'] },
  });
});

describe('a source that changes', () => {
  captures('columns may be renamed', {
    attach: WATCH_STATUS,
    run: [
      'insert into job values (1, :a)',
      'alter table job rename column id to no', 'alter table job rename column org_id to tenant',
      'alter table job rename column status to state', 'alter table job rename to work',
      "update work set state = 'done'", 'insert into work values (2, :b)',
    ],
    expect: { a: ['created 1', 'status_changed 1'], b: ['created 2'] },
  });
  for (const [what, sql] of [
    ['dropping the organisation', 'alter table job drop column org_id'],
    ['dropping the key', 'alter table job drop column id'],
    ['dropping a watched column', 'alter table job drop column status'],
    ['another type for the key', 'alter table job alter column id type bigint'],
    ['another type for a watched column', 'alter table job alter column status type varchar'],
  ]) {
    captures(`${what} is refused, and capture goes on`, {
      attach: WATCH_STATUS,
      act: async ({ client, query }) => {
        const error = await refusal(client, sql);
        assert.match(error.code ?? '', /^(2BP01|0A000|55006)$/);
        assert.ok(error.hint ?? error.detail, 'says what holds it');
        await query('insert into job values (1, :a)');
      },
      expect: { a: ['created 1'] },
    });
  }
  captures('a column that no source uses may be dropped', {
    attach: WATCH_STATUS,
    run: ['alter table job drop column note', 'insert into job values (1, :a)'],
    expect: { a: ['created 1'] },
  });
  captures('attaching again replaces the options', {
    run: [
      'insert into job values (1, :a)',
      "select outbox.attach('job', watch => '{status}', events => '{update}')",
      'insert into job values (2, :a)', "update job set status = 'done' where id = 1",
      "update job set note = 'x'",
    ],
    expect: { a: ['created 1', 'status_changed 1'] },
  });
  captures('detach ends capture, and what was captured stays', {
    run: ['insert into job values (1, :a)', "select outbox.detach('job')", 'insert into job values (2, :a)'],
    expect: { a: ['created 1'] },
  });
  captures('a table that is dropped leaves its events', {
    run: ['insert into job values (1, :a)', 'drop table job'],
    expect: { a: ['created 1'] },
  });
});

describe('writers', () => {
  captures('a role with no rights but on the table', {
    act: async ({ query, another, schema }) => {
      await query(`grant usage on schema ${schema} to writer; grant all on job to writer`);
      const writer = await another({ user: 'writer' });
      await writer.query('insert into job values (1, :a)');
      await writer.query("update job set status = 'done'");
      await writer.query('delete from job');
      for (const hidden of ['select from outbox.events', 'select from _private.outbox',
        "select outbox.attach('job')", 'set pg_outbox.capture = off']) {
        await assert.rejects(writer.query(hidden), { code: '42501' }, hidden);
      }
    },
    expect: { a: ['created 1', 'updated 1', 'deleted 1'] },
  });
  captures('a superuser may switch capture off for a transaction', {
    run: ['begin', 'set local pg_outbox.capture = off', 'insert into job values (1, :a)', 'commit',
      'insert into job values (2, :a)'],
    expect: { a: ['created 2'] },
  });
  captures('switched off in the middle of a transaction', {
    run: ['begin', 'insert into job values (1, :a)', 'set local pg_outbox.capture = off',
      'insert into job values (2, :a)', 'set local pg_outbox.capture = on',
      'insert into job values (3, :a)', 'commit'],
    expect: { a: ['created 1', 'created 3'] },
  });
});

test('the origin is who the writer says it is', async () => {
  const client = await connect(cluster);
  await client.query(`${JOB.replace('job', 'origin_job')}; grant all on origin_job to writer`);
  await client.query("select outbox.attach('origin_job', entity => 'job')");
  const org = 'a0000000-0000-0000-0000-000000000001';
  const writer = await connect(cluster, { user: 'writer' });
  const write = (/** @type {number} */ id, /** @type {string} */ setting) =>
    writer.query(`begin; ${setting}; insert into origin_job values (${id}, '${org}'); commit`);
  await write(1, "set local pg_outbox.origin = 'tab-1'");
  await write(2, 'select 1');
  await write(3, `set local request.headers = '{"x-outbox-origin":"tab-3","accept":"*/*"}'`);
  await write(4, `set local request.headers = 'not json'`);
  await write(5, `set local request.headers = '{"x-outbox-origin":"header"}'; set local pg_outbox.origin = 'setting'`);
  await write(6, `set local request.headers = ''`);
  const events = await storedEvents(client, [org]);
  assert.deepEqual(events.map(({ origin }) => origin), ['tab-1', null, 'tab-3', null, 'setting', null]);
  await writer.end();
  await client.end();
});

test('one transaction may speak for several origins', async () => {
  const client = await connect(cluster);
  await client.query(`${JOB.replace('job', 'origins')}; select outbox.attach('origins')`);
  const org = 'a0000000-0000-0000-0000-000000000002';
  await client.query(`begin;
    set local pg_outbox.origin = 'one'; insert into origins values (1, '${org}');
    set local pg_outbox.origin = 'two'; insert into origins values (2, '${org}'), (3, '${org}'); commit`);
  const events = await storedEvents(client, [org]);
  assert.deepEqual(events.map(({ origin }) => origin), ['one', 'two', 'two']);
  await client.end();
});

test('included columns travel in data, and nothing else does', async () => {
  const client = await connect(cluster);
  await client.query(`create table included (id int primary key, org_id text, status text, secret text, size int, tags jsonb);
    select outbox.attach('included', include => '{status,size,tags}');
    insert into included values (1, 'included', 'n"ew', 'hidden', 3, '{"x":[1,2]}'), (2, 'included', null, 'hidden', null, null)`);
  const events = await storedEvents(client, ['included']);
  assert.deepEqual(events.map(({ data }) => data), [
    { status: 'n"ew', size: 3, tags: { x: [1, 2] } },
    { status: null, size: null, tags: null },
  ]);
  const stored = await value(client, 'select string_agg(o::text, $$ $$) from _private.outbox o');
  assert.ok(!stored.includes('hidden'), 'a column that was not named is stored nowhere');
  await client.end();
});

test('emit makes an event of its own, in its transaction', async () => {
  const client = await connect(cluster);
  await client.query("select outbox.create_event_type('report.ready')");
  const id = await value(client, `select outbox.emit('report.ready', 'emit', '{"report_id": 7}', topic => 'reports')`);
  await client.query(`begin; select outbox.emit('report.ready', 'emit', '{}'); rollback`);
  const events = await storedEvents(client, ['emit']);
  assert.deepEqual(events.map((event) => [event.event_id, event.event_type, event.topic, event.ids]),
    [[id, 'report.ready', 'reports', { report_id: 7 }]]);
  await client.end();
});

test('emitted and captured events of one organisation keep their order', async () => {
  const client = await connect(cluster);
  await client.query(`create table mixed (id int primary key, org_id text); select outbox.attach('mixed');
    select outbox.create_event_type('mixed.checked')`);
  await client.query(`begin; insert into mixed values (1, 'mixed');
    select outbox.emit('mixed.checked', 'mixed', '{"mixed_id": 1}');
    insert into mixed values (2, 'mixed'); delete from mixed where id = 1; commit`);
  const events = await storedEvents(client, ['mixed']);
  assert.deepEqual(events.map(({ event_type, ids }) => `${event_type} ${ids.mixed_id}`),
    ['mixed.created 1', 'mixed.checked 1', 'mixed.created 2', 'mixed.deleted 1']);
  await client.end();
});

test('every event has an id of its own, a version 7 uuid of the time of its commit', async () => {
  const client = await connect(cluster);
  await client.query("create table many (id int primary key, org_id text); select outbox.attach('many')");
  const before = Date.now();
  await client.query("insert into many select i, 'many' from generate_series(1, 2000) i");
  const events = await storedEvents(client, ['many']);
  assert.equal(new Set(events.map(({ event_id }) => event_id)).size, 2000);
  for (const { event_id, created_at } of events) {
    assert.match(event_id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    const millis = parseInt(event_id.replaceAll('-', '').slice(0, 12), 16);
    assert.ok(millis >= before - 1000 && millis <= Date.now() + 1000, `${event_id} is of now`);
    assert.ok(Math.abs(millis - created_at.getTime()) < 2000, 'and agrees with created_at');
  }
  await client.end();
});

test('a transaction larger than the buffer, with a part rolled back, is exact', async () => {
  const client = await connect(cluster);
  await client.query("create table bulk (id int primary key, org_id text, n int default 0); select outbox.attach('bulk')");
  await client.query('begin');
  await client.query("insert into bulk select i, 'bulk-' || i % 3 from generate_series(1, 200000) i");
  await client.query('savepoint s');
  await client.query('update bulk set n = 1');
  await client.query('rollback to s');
  await client.query('update bulk set n = 2 where id <= 10');
  await client.query('commit');
  const counts = await client.query(`select org_id, event_type, count(*)::int, count(distinct ids->>'bulk_id')::int as keys
    from outbox.events where org_id like 'bulk-%' group by 1, 2 order by 1, 2`);
  assert.deepEqual(counts.rows, [
    { org_id: 'bulk-0', event_type: 'bulk.created', count: 66666, keys: 66666 },
    { org_id: 'bulk-0', event_type: 'bulk.updated', count: 3, keys: 3 },
    { org_id: 'bulk-1', event_type: 'bulk.created', count: 66667, keys: 66667 },
    { org_id: 'bulk-1', event_type: 'bulk.updated', count: 4, keys: 4 },
    { org_id: 'bulk-2', event_type: 'bulk.created', count: 66667, keys: 66667 },
    { org_id: 'bulk-2', event_type: 'bulk.updated', count: 3, keys: 3 },
  ]);
  const disorder = await value(client, `select count(*)::int from (
    select (ids->>'bulk_id')::int < lag((ids->>'bulk_id')::int) over (partition by org_id order by entry_id, place) as back
    from outbox.events where event_type = 'bulk.created') x where back`);
  assert.equal(disorder, 0);
  await client.end();
});

describe('inheritance', () => {
  test('children are attached with their parent, or check() names them', async () => {
    const client = await connect(cluster);
    await client.query(`create table animal (id int primary key, org_id text);
      create table cat (lives int) inherits (animal); select outbox.attach('animal')`);
    await client.query("insert into animal values (1, 'zoo'); insert into cat values (2, 'zoo', 9)");
    await client.query("create table dog () inherits (animal); insert into dog values (3, 'zoo')");
    const captured = new Set((await storedEvents(client, ['zoo'])).map(({ ids }) => ids.animal_id));
    assert.ok(captured.has(1));
    const { rows } = await client.query('select * from outbox.check()');
    const words = JSON.stringify(rows.filter(({ ok }) => !ok));
    for (const [id, child] of /** @type {const} */ ([[2, 'cat'], [3, 'dog']])) {
      assert.ok(captured.has(id) || words.includes(child), `${child} is captured or named`);
    }
    await client.end();
  });
});

test('rows without an organisation are counted, and check() says so', async () => {
  const client = await connect(cluster);
  await client.query(`create table stray (id int primary key, org_id text); select outbox.attach('stray');
    insert into stray values (1, null), (2, null)`);
  const { rows } = await client.query('select * from outbox.check()');
  const word = rows.find((row) => !row.ok && JSON.stringify(row).includes('stray'));
  assert.ok(word, `none of these names the table: ${JSON.stringify(rows)}`);
  assert.ok(word.hint, 'and says what to do');
  await client.end();
});
