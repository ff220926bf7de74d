// @ts-check
/**
 * What the documents say.
 *
 *  1. Every SQL block of the README and of docs/ runs, in order, each document in a database of its
 *     own. A block that must fail says so (`-- error: SQLSTATE`), one that gives a value says which
 *     (`-- gives: VALUE`, its last line).
 *  2. The messages that docs/messages.md shows are what a subscriber receives.
 *  3. Everything that there is to call, read or set is described, with its signature, columns,
 *     defaults and bounds; and nothing is described that does not exist.
 *  4. Links and paths lead somewhere, the map names every room, and the tests that
 *     docs/reliability.md names are there.
 *
 * What would break silently: a reader follows a document that was true once.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { waitUntil } from '../harness/wait.mjs';
import { listen } from './support/audience.mjs';
import { column, connect } from './support/database.mjs';
import { delivered } from './support/delivery.mjs';
import {
  ROOT, anchorsOf, documentsIn, linksOf, readDocument, section, table,
} from './support/documents.mjs';
import { INSTALLED, mustHold, openDatabase } from './support/surroundings.mjs';

const WITHOUT_SQL = new Set(['docs/reliability.md']);

const README = readDocument('README.md');
const DOCS = documentsIn(['docs']);
const doc = (/** @type {string} */ name) => {
  const found = DOCS.find(({ path }) => path === `docs/${name}.md`);
  if (!found) throw new Error(`there is no docs/${name}.md`);
  return found;
};
/** Names of what the doctor may find, as the chapter for operators lists them. */
const FINDINGS = table(section(doc('operating'), 'What check() says'), 'name')
  .map(({ name }) => name);
const ALL = documentsIn(['.', 'docs', 'demo', 'pgrx-tests']);

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
before(async () => {
  cluster = await startCluster({ settings: { max_worker_processes: 32 } });
});
after(() => cluster?.stop());

/**
 * Runs a block and checks what it says of itself.
 *
 * @param {(sql: string) => Promise<string>} run
 * @param {import('./support/documents.mjs').Block} block
 * @param {string} where
 */
async function runBlock(run, { text, line }, where) {
  const at = `${where}:${line}`;
  const refused = /-- error: (\w{5})/.exec(text)?.[1];
  const gives = /-- gives: (.*)/.exec(text)?.[1];
  /** @type {string} */
  let output;
  try {
    output = await run(text);
  } catch (error) {
    const { message } = /** @type {Error} */ (error);
    assert.equal(/ERROR: +(\w{5})/.exec(message)?.[1], refused, `${at}: ${message}`);
    return;
  }
  assert.equal(refused, undefined, `${at} was accepted`);
  if (gives !== undefined) assert.equal(output.split('\n').at(-1), gives, at);
}

const sqlOf = (/** @type {import('./support/documents.mjs').Document} */ document) =>
  document.blocks.filter(({ language }) => language === 'sql');

describe('the SQL runs', () => {
  test('README.md, and the doctor finds nothing', async (t) => {
    const example = sqlOf(doc('messages')).find(({ text }) => text.includes('create function'));
    const [membership] = /create function[^]*?\n\$\$;/.exec(example?.text ?? '') ?? [];
    assert.ok(membership, 'there is an example of a membership function');
    const row = "insert into cataloging_jobs values (1, '42');";
    const { run, client } = await openDatabase(t, cluster, README.path, row + membership);
    for (const block of sqlOf(README)) await runBlock(run, block, README.path);
    await delivered(client);
    assert.deepEqual(await column(client, 'select name from outbox.check() where not ok'), []);
    const general = (/** @type {string} */ name) => name.replace(/^(sink|source) [^:]*:/, '$1 …:');
    const found = (await column(client, 'select name from outbox.check()')).map(general);
    assert.ok(found.length > 5, 'the doctor finds much that is well');
    assert.deepEqual(found.filter((name) => !FINDINGS.includes(name)), [], 'not described');
  });

  for (const document of DOCS.filter(({ path }) => !WITHOUT_SQL.has(path))) {
    test(document.path, async (t) => {
      const { run, client } = await openDatabase(t, cluster, document.path, INSTALLED);
      assert.ok(sqlOf(document).length > 0, 'it has no SQL');
      for (const block of sqlOf(document)) await runBlock(run, block, document.path);
      await mustHold(document.path, client);
    });
  }
});

describe('the messages are as they are shown', () => {
  test('docs/messages.md', async (t) => {
    const document = doc('messages');
    const { run, client, realtime } = await openDatabase(t, cluster, document.path, INSTALLED);
    const person = randomUUID();
    await client.query("insert into memberships values ($1, '42')", [person]);
    /** @type {Awaited<ReturnType<typeof listen>> | undefined} */
    let listener;
    t.after(() => listener?.close());
    let compared = 0;
    for (const block of document.blocks) {
      if (block.language === 'sql') {
        await runBlock(run, block, document.path);
        if (block.text.includes('setup_realtime')) {
          listener = await listen(realtime.url, person, ['42']);
          assert.deepEqual(listener.statuses, ['SUBSCRIBED']);
        }
      } else if (block.language === 'json') {
        const received = listener?.received ?? [];
        await waitUntil(() => received.length > compared, `the message of line ${block.line}`);
        const { payload } = received[compared];
        const shown = JSON.parse(block.text);
        const sent = shown.v ? payload : payload.events.at(-1);
        assert.deepEqual(alike(sent), alike(shown), `${document.path}:${block.line}`);
        compared += 1;
      }
    }
    assert.equal(listener?.received.length, compared, 'no message but those that are shown');
    assert.ok(compared >= 4, `${compared} messages were compared`);
  });

  test('README.md shows an event of the same shape', () => {
    const [shown] = README.blocks.filter(({ language }) => language === 'json');
    const [documented] = doc('messages').blocks.filter(({ language }) => language === 'json');
    const shapeOf = (/** @type {string} */ json) => {
      const { events: [event], ...message } = JSON.parse(json);
      return [Object.keys(message), Object.keys(event)];
    };
    assert.deepEqual(shapeOf(shown.text), shapeOf(documented.text));
  });
});

/**
 * The same with what differs each time replaced by its form.
 *
 * @param {unknown} value
 * @returns {unknown}
 */
function alike(value) {
  const forms = /** @type {const} */ ([
    [/_?event_id$/, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/],
    [/^at$/, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/],
    [/^cursor$/, /^[\w-]+$/],
  ]);
  return JSON.parse(JSON.stringify(value), (name, inner) => {
    const form = forms.find(([names]) => names.test(name))?.[1];
    return form?.test(inner) ? String(form) : inner;
  });
}

describe('what there is, is described', () => {
  /** @type {import('pg').Client} */
  let client;
  before(async () => {
    await cluster.psql('create database described');
    client = await connect(cluster, { database: 'described' });
    await client.query('create extension pg_outbox; create schema documented');
  });
  after(() => client?.end());

  const functionsIn = (/** @type {string} */ schema) => column(client, `
    select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid)
    from pg_proc p where p.pronamespace = $1::regnamespace order by 1`, [schema]);
  const views = () => column(client, `select relname from pg_class
    where relnamespace = 'outbox'::regnamespace and relkind = 'v' order by 1`);

  test('functions, with their signatures', async () => {
    const blocks = [...doc('capture').blocks, ...doc('sql').blocks]
      .filter(({ language }) => language === 'text');
    const signatures = blocks.flatMap(({ text }) => text.split(/\n(?=outbox\.)/));
    for (const signature of signatures) {
      const [, name, rest] = /^outbox\.(\w+)([\s\S]*)$/.exec(signature) ?? [];
      assert.ok(name, signature);
      // In a language that does not mind an argument and a column of one name.
      await client.query(`create function documented.${name}${rest} language internal as 'now'`);
    }
    assert.deepEqual(await functionsIn('documented'), await functionsIn('outbox'));
  });

  test('views, with their columns', async () => {
    const sections = doc('views').prose.match(/^## \w+$/gm) ?? [];
    const described = sections.map((line) => line.slice(3));
    assert.deepEqual([...described].sort(), await views());
    for (const view of described) {
      const rows = table(section(doc('views'), view), 'column');
      const names = await column(client, `select attname, atttypid::regtype::text from pg_attribute
        where attrelid = $1::regclass and attnum > 0 order by attnum`, [`outbox.${view}`]);
      const types = await column(client, 'select t::regtype::text from unnest($1::text[]) t',
        [rows.map(({ type }) => type)]);
      assert.deepEqual(rows.map((row, index) => [row.column, types[index]]), names, view);
    }
  });

  test('nothing else is named', async () => {
    const everywhere = ALL.map(({ text }) => text).join('\n');
    const unknown = (/** @type {RegExp} */ pattern, /** @type {string[]} */ known) =>
      [...new Set([...everywhere.matchAll(pattern)].map(([, name]) => name))]
        .filter((name) => !known.includes(name));
    const functions = (await functionsIn('outbox')).map(([name]) => name);
    // A file of the demo is called outbox.sql.
    assert.deepEqual(unknown(/\boutbox\.([a-z_]+)/g, [...functions, ...await views(), 'sql']), []);

    const hidden = await column(client, `
      select relname from pg_class where relnamespace = '_private'::regnamespace
      union select proname from pg_proc where pronamespace = '_private'::regnamespace`);
    assert.deepEqual(unknown(/\b_private\.([a-z0-9_]+)/g, hidden), []);

    const settings = await column(client,
      "select substr(name, 11) from pg_settings where name like 'pg_outbox.%'");
    const files = ['control', 'so'];
    assert.deepEqual(unknown(/\bpg_outbox\.([a-z_]+)/g, [...settings, ...files]), []);
  });

  test('settings, with defaults and bounds', async () => {
    const { rows } = await client.query(`
      select name, current_setting(name) as usual, context,
        case vartype when 'integer' then min_val || ' to ' || max_val || ' ' || unit end as bounds
      from pg_settings where name like 'pg_outbox.%' order by name`);
    const described = table(section(doc('configuration'), 'Settings'), 'setting');
    assert.deepEqual(described.map(({ setting }) => setting).sort(), rows.map(({ name }) => name));
    for (const { name, usual, context, bounds } of rows) {
      const row = described.find(({ setting }) => setting === name);
      assert.equal(row?.default, usual || 'empty', name);
      if (bounds) assert.equal(row?.range, bounds, name);
      const who = /** @type {Record<string, RegExp>} */ ({
        sighup: /^reload|^when a relay starts/, superuser: /^superuser/, user: /^anybody/,
      });
      assert.match(row?.['who, and when it takes effect'] ?? '', who[context], name);
    }
  });

  test('options of sinks, with types, defaults and bounds', async () => {
    const options = await column(client,
      "select option, type, coalesce(default_value, 'none') from outbox.sink_options");
    const described = table(section(doc('configuration'), 'Sink options'), 'option');
    assert.deepEqual(described.map((row) => [row.option, row.type, row.default]), options);
    const isTaken = async (/** @type {string} */ option, /** @type {number} */ number) => {
      const given = { url: 'http://127.0.0.1', secret: 'x', [option]: number };
      const check = client.query("select _private.check_sink_options('realtime', $1)",
        [JSON.stringify(given)]);
      return check.then(() => true, () => false);
    };
    for (const { option, range } of described.filter(({ type }) => type === 'integer')) {
      const [, low, high] = /^(\d+) to (\d+)$/.exec(range)?.map(Number) ?? [];
      const numbers = [low - 1, low, high, high + 1];
      const taken = [];
      for (const number of numbers) taken.push(await isTaken(option, number));
      assert.deepEqual(taken, [false, true, true, false], `${option}: ${range}`);
    }
  });

  test('metrics', async () => {
    await client.query(`create table seen (id int primary key, org_id text);
      select outbox.attach('seen'); insert into seen values (1, null); truncate seen;
      select outbox.set_secret('s', 'x');
      select outbox.set_sink('s', 'realtime', '{"url": "http://127.0.0.1:9", "jwt_secret": "s"}')`);
    const names = () => column(client, 'select distinct name from outbox.metrics order by 1');
    const described = table(section(doc('operating'), 'Metrics'), 'name').map(({ name }) => name);
    const isWhole = (/** @type {string[]} */ found) => found.length >= described.length;
    await waitUntil(names, 'the relay to report', { accept: isWhole });
    assert.deepEqual([...described].sort(), await names());
  });

  test('lines of the log', () => {
    const files = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' });
    const lines = files.filter((name) => name.endsWith('.rs')).flatMap((name) => {
      const source = readFileSync(join(ROOT, 'src', name), 'utf8').replace(/\\\n\s*/g, '');
      return [...source.matchAll(/log!\(\s*"pg_outbox: ((?:[^"\\]|\\.)*)"/g)]
        .map(([, line]) => line.replaceAll('\\"', '"').replace(/\{[^}]*\}/g, '…'));
    });
    assert.ok(lines.length > 5, 'the lines are found');
    const described = table(section(doc('operating'), 'What the log says'), 'line')
      .map(({ line }) => line);
    const strange = lines.filter((line) => !described.some((start) => line.startsWith(start)));
    assert.deepEqual(strange, [], 'not described');
    const idle = described.filter((start) => !lines.some((line) => line.startsWith(start)));
    assert.deepEqual(idle, [], 'never said');
  });

  test('findings of the doctor', () => {
    const scripts = readdirSync(join(ROOT, 'sql/install'));
    const sources = ['src/check.rs', ...scripts.map((name) => `sql/install/${name}`)]
      .map((name) => readFileSync(join(ROOT, name), 'utf8')).join('');
    const isSaid = (/** @type {string} */ name) => ["'", '"', ': ']
      .some((before) => ["'", '"'].some((after) => sources.includes(before + name + after)));
    const last = (/** @type {string} */ name) => name.replace(/^(sink|source) …: /, '');
    assert.deepEqual(FINDINGS.filter((name) => !isSaid(last(name))), [], 'never said');
  });

  test('failures of a sink, and whose fault they are', () => {
    const source = readFileSync(join(ROOT, 'src/sink/mod.rs'), 'utf8');
    const bodyOf = (/** @type {string} */ name) =>
      new RegExp(`fn ${name}\\(self\\)[^{]*\\{([\\s\\S]*?)\\n    \\}`).exec(source)?.[1] ?? '';
    const words = new Map([...bodyOf('name').matchAll(/Self::(\w+) => "([a-z_]+)"/g)]
      .map(([, kind, word]) => [kind, word]));
    assert.ok(words.size > 10, 'the words are found');
    const faults = [...bodyOf('blame').matchAll(/([\w:|\s]+?) => Blame::(\w+)/g)]
      .flatMap(([, kinds, fault]) => [...kinds.matchAll(/Self::(\w+)/g)]
        .map(([, kind]) => [words.get(kind), fault.toLowerCase()]));
    const described = table(section(doc('failures'), 'What can go wrong'), 'word')
      .map(({ word, fault }) => [word, fault]);
    assert.deepEqual(described.sort(), faults.sort());
  });
});

describe('the way about', () => {
  test('links lead somewhere', () => {
    const broken = ALL.flatMap((document) => linksOf(document).filter((link) => {
      const [file, anchor] = link.split('#');
      const path = file ? normalize(join(dirname(document.path), file)) : document.path;
      if (!existsSync(join(ROOT, path))) return true;
      return anchor !== undefined && !anchorsOf(readDocument(path)).has(anchor);
    }).map((link) => `${document.path}: ${link}`));
    assert.deepEqual(broken, []);
  });

  test('paths exist', () => {
    const paths = /`((?:src|sql|docs|demo|bench|pgrx-tests)\/[\w./-]*)`/g;
    const missing = ALL.flatMap(({ path, text }) => [...text.matchAll(paths)]
      .filter(([, named]) => !existsSync(join(ROOT, named)))
      .map(([, named]) => `${path}: ${named}`));
    assert.deepEqual(missing, []);
  });

  test('the map names every room', () => {
    const map = readDocument('ARCHITECTURE.md').text;
    const files = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.rs') && !name.endsWith('_test.rs'));
    const names = files.map((name) => (name.startsWith('pg/') ? name.slice(3) : `src/${name}`));
    assert.deepEqual(names.filter((name) => !map.includes(`\`${name}\``)), []);
  });

  test('the map names functions and types that there are', () => {
    const files = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' });
    const sources = files.filter((name) => name.endsWith('.rs'))
      .map((name) => readFileSync(join(ROOT, 'src', name), 'utf8')).join('\n');
    const named = readDocument('ARCHITECTURE.md').text.matchAll(/`(?:\w+::)+(\w+)`/g);
    // A variant stands at the beginning of its line.
    const declared = (/** @type {string} */ name) =>
      new RegExp(`\\b(fn|struct|enum|trait|mod) ${name}\\b|^\\s+${name}\\b[ ({,]`, 'm');
    const unknown = [...new Set([...named].map(([, name]) => name))]
      .filter((name) => !declared(name).test(sources));
    assert.deepEqual(unknown, []);
  });

  test('the tests that show what holds are there', () => {
    const { path, prose } = doc('reliability');
    const rows = prose.split('\n').filter((line) => / \| \[/.test(line));
    const cited = rows.flatMap((row) => [...row.matchAll(/\]\(([^)]+)\)((?: (?:· )?\*[^*]+\*)*)/g)])
      .map(([, link, names]) => ({
        file: normalize(join(dirname(path), link)),
        names: [...names.matchAll(/\*([^*]+)\*/g)].map(([, name]) => name),
      }))
      .filter(({ file }) => /\.(mjs|rs)$/.test(file));
    assert.ok(rows.length > 20 && cited.length >= rows.length, `${cited.length} citations`);
    const missing = cited.flatMap(({ file, names }) => {
      const source = readFileSync(join(ROOT, file), 'utf8');
      const isTest = (/** @type {string} */ name) => (file.endsWith('.rs')
        ? source.includes(`fn ${name}()`)
        : ["'", '"', '`'].some((quote) => source.includes(quote + name + quote)));
      const absent = names.filter((name) => !isTest(name)).map((name) => `${file}: ${name}`);
      return names.length > 0 ? absent : [`${file}: none of its tests is named`];
    });
    assert.deepEqual(missing, []);
  });

  test('the bugs that the simulation must find are those that are listed', () => {
    const folder = join(ROOT, 'pgrx-tests/model/mutations');
    const bugs = readdirSync(folder).sort().map((name) =>
      readFileSync(join(folder, name), 'utf8').split('\n', 1)[0].replace(/\.$/, ''));
    const listed = table(section(doc('reliability'), 'Does the simulation bite?'), 'bug');
    const small = (/** @type {string} */ text) => text[0].toLowerCase() + text.slice(1);
    assert.deepEqual(listed.map(({ bug }) => bug), bugs.map(small));
    const isSaid = ({ seed = '' }) => /^(\d+|none in \d+ million steps)$/.test(seed);
    assert.ok(listed.every(isSaid), 'each with its seed');
  });

  test('META.json is of this version', () => {
    const meta = JSON.parse(readFileSync(join(ROOT, 'META.json'), 'utf8'));
    const cargo = /^version = "(.*)"/m.exec(readFileSync(join(ROOT, 'Cargo.toml'), 'utf8'))?.[1];
    assert.deepEqual([meta.version, meta.provides.pg_outbox.version], [cargo, cargo]);
    for (const file of [meta.provides.pg_outbox.file, meta.provides.pg_outbox.docfile]) {
      assert.ok(existsSync(join(ROOT, file)), file);
    }
  });
});
