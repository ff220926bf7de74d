// @ts-check
/**
 * What the extension owns, down to the last column, and who may do what with it.
 *
 *  1. It is what `objects.expected` says: a change of it is meant, and seen in review.
 *  2. PUBLIC may do nothing, nor anybody else but the owner; pg_monitor may see what is expected.
 *  3. Every object, table and column says what it is (COMMENT ON).
 *  4. Every function pins its search_path, or is in C and reads no name.
 *
 * What would break silently: a function that anybody may call as its owner.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';

const EXPECTED = new URL('objects.expected', import.meta.url);
const HOW_TO_ACCEPT = `
If this is what you want, take it over, and look at the change once more in the commit:
  ACCEPT=1 make test-e2e FILES=pgrx-tests/inventory/inventory.test.mjs`;

/** Lines that may say something of PUBLIC. None: nobody is given anything by default. */
const PUBLIC_MAY = new Set(/** @type {string[]} */ ([]));

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {string[]} */
let lines;
before(async () => {
  cluster = await startCluster();
  await cluster.psql('create extension pg_outbox');
  const query = await readFile(new URL('objects.sql', import.meta.url), 'utf8');
  lines = (await cluster.psql(query)).split('\n');
});
after(() => cluster?.stop());

/** The facts of one kind of object, each with the name of its object. @param {string} kind */
function* factsOf(kind) {
  let object = '';
  for (const line of lines) {
    if (!line.startsWith(' ')) object = line;
    else if (object.startsWith(kind)) yield { object, fact: line.trim() };
  }
}

test('it owns what is expected', async () => {
  if (process.env.ACCEPT) await writeFile(EXPECTED, `${lines.join('\n')}\n`);
  const expected = (await readFile(EXPECTED, 'utf8')).trimEnd().split('\n');
  const changes = difference(expected, lines);
  assert.ok(changes.length === 0, `the extension owns something else:\n${changes.join('\n')}\n${HOW_TO_ACCEPT}`);
});

test('nothing is granted, and nothing is without a word', () => {
  const complaints = lines.filter((line) => line.includes('!!') && !PUBLIC_MAY.has(line.trim()));
  assert.deepEqual(complaints, []);
});

test('every function pins its search_path', () => {
  const paths = new Set([...factsOf('function')]
    .filter(({ fact }) => fact === 'set search_path=pg_catalog, pg_temp' || /^c /.test(fact))
    .map(({ object }) => object));
  const functions = lines.filter((line) => line.startsWith('function '));
  assert.deepEqual(functions.filter((name) => !paths.has(name)), []);
  assert.ok(functions.length > 20, `${functions.length} functions`);
});

/**
 * The lines that differ, each block under the object that it belongs to; `-` is gone, `+` is new.
 *
 * @param {string[]} before
 * @param {string[]} after
 */
function difference(before, after) {
  const [old, now] = [byObject(before), byObject(after)];
  const changes = [];
  for (const object of [...new Set([...old.keys(), ...now.keys()])].sort()) {
    const [had, has] = [old.get(object), now.get(object)];
    const gone = (had ?? []).filter((fact) => !has?.includes(fact)).map((fact) => `- ${fact}`);
    const added = (has ?? []).filter((fact) => !had?.includes(fact)).map((fact) => `+ ${fact}`);
    const mark = !had ? '+ ' : !has ? '- ' : '  ';
    const moved = had && has && String(had) !== String(has) && !gone.length && !added.length;
    if (moved) added.push('~     the same in another order');
    if (mark !== '  ' || gone.length || added.length) changes.push(mark + object, ...gone, ...added);
  }
  return changes;
}

/** @param {string[]} lines */
function byObject(lines) {
  /** @type {Map<string, string[]>} */
  const objects = new Map();
  let object = '';
  for (const line of lines) {
    if (!line.startsWith(' ')) objects.set((object = line), []);
    else objects.get(object)?.push(line);
  }
  return objects;
}
