// @ts-check
/**
 * `make demo` as a person runs it: it says where to look, and Ctrl-C leaves nothing behind.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, rmdirSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { freePort } from '../../pgrx-tests/harness/cluster.mjs';
import { waitUntil } from '../../pgrx-tests/harness/wait.mjs';

const DEMO = fileURLToPath(new URL('../demo.mjs', import.meta.url));

/** @param {Record<string, string>} environment */
function run(environment) {
  const inherited = { ...process.env, DATABASE_URL: '', REALTIME_URL: '', JWT_SECRET: '' };
  const child = spawn(process.execPath, [DEMO], { env: { ...inherited, ...environment } });
  const output = { text: '' };
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk) => (output.text += chunk));
  }
  return { child, output, exit: once(child, 'exit') };
}

test('the demo serves its page on the chosen port until Ctrl-C, and leaves nothing', async () => {
  const place = mkdtempSync('/tmp/demo-');
  chmodSync(place, 0o755); // The server's own user must reach its folder in here.
  const port = await freePort();
  const { child, output, exit } = run({ PORT: String(port), TMPDIR: place });
  await waitUntil(() => output.text.includes('Ctrl-C stops it') || child.exitCode !== null, 'it', {
    timeoutMs: 30_000,
  });
  assert.match(output.text, new RegExp(`Open +http://127.0.0.1:${port}\n`));
  const [, databaseUrl] = /psql (postgresql:\S+)/.exec(output.text) ?? [];
  assert.ok(databaseUrl, output.text);

  const page = await fetch(`http://127.0.0.1:${port}/`);
  assert.match(await page.text(), /Who are you today/);
  const refused = await fetch(`http://127.0.0.1:${port}/api/jobs`);
  assert.equal(refused.status, 401);
  const outside = await fetch(`http://127.0.0.1:${port}/..%2fpackage.json`);
  assert.equal(outside.status, 404);
  assert.equal(readdirSync(place).length, 1, 'the folder of the cluster');

  child.kill('SIGINT');
  assert.deepEqual(await exit, [0, null], output.text);
  assert.match(output.text, /Everything is removed/);
  assert.deepEqual(readdirSync(place), []);
  rmdirSync(place);
  await assert.rejects(fetch(`http://127.0.0.1:${port}/`));
});

for (const [environment, words] of /** @type {const} */ ([
  [{ REALTIME_URL: 'http://127.0.0.1:4000' }, /REALTIME_URL needs DATABASE_URL too/],
  [
    { REALTIME_URL: 'http://127.0.0.1:4000', DATABASE_URL: 'postgresql://127.0.0.1:1/demo' },
    /REALTIME_URL needs JWT_SECRET too/,
  ],
  [{ DATABASE_URL: 'postgresql://127.0.0.1:1/demo' }, /cannot connect to DATABASE_URL/],
  [{ PORT: 'eighty' }, /PORT=eighty is not a port/],
])) {
  test(`it says what is wrong with ${Object.keys(environment).join(' and ')}`, async () => {
    const { output, exit } = run(environment);
    assert.deepEqual(await exit, [1, null]);
    assert.match(output.text, words);
    assert.doesNotMatch(output.text, /\n +at /, 'no stack');
  });
}
