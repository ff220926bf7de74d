// @ts-check
/**
 * The whole way, as people see it: a commit, the relay, Realtime, and pages in a real browser.
 *   1. a change reaches every page of its organisation, whoever made it and however;
 *   2. it reaches no page of another organisation, and nobody else can join the channel;
 *   3. the page that made the change knows its own echo;
 *   4. 10,000 changes at once arrive as a few messages, and every page reads anew;
 *   5. without Realtime the page says so, and everything is there when it is back;
 *   6. a lone change is on the screen within the promise.
 * Were 2 wrong, it would show nowhere but on a stranger's screen.
 *
 * That something does not arrive is proved by a later change that does: events of an organisation
 * come in order.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { chromium } from 'playwright-core';
import { waitUntil } from '../../pgrx-tests/harness/wait.mjs';
import { startDemo } from '../stack.mjs';

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const CHROMIUM_OPTIONS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];
const LIBRARY = '10000000-0000-4000-8000-000000000001';
const ARCHIVE = '20000000-0000-4000-8000-000000000002';
/** The promise of the design for a lone event. */
const LATENCY_MS = 100;
/** How long changes gather for one message when their organisation has sent a burst. */
const WINDOW_MS = 250;
const LONE_CHANGES = 11;

/** @typedef {import('playwright-core').Page} Page */

/** @type {import('../stack.mjs').Demo} */
let demo;
/** @type {import('playwright-core').Browser} */
let browser;
/** @type {Page} */
let amara;
/** @type {Page} */
let bo;
/** @type {Page} */
let dana;

before(async () => {
  demo = await startDemo();
  browser = await chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_OPTIONS });
  [amara, bo, dana] = await Promise.all(['Amara', 'Bo', 'Dana'].map(signIn));
});
after(async () => {
  await browser?.close();
  await demo?.stop();
});

/** Signs somebody in, in a browser profile of their own, and waits until their page is live. */
async function signIn(/** @type {string} */ name) {
  const context = await browser.newContext({ viewport: { width: 1360, height: 900 } });
  const page = await context.newPage();
  page.on('pageerror', (error) => assert.fail(`${name}'s page: ${error.message}`));
  await page.goto(demo.url);
  await page.getByTestId('people').getByRole('button', { name }).click();
  await page.locator('[data-testid=connection][data-state=live]').waitFor();
  await page.getByTestId('job').first().waitFor();
  return page;
}

const jobRow = (/** @type {Page} */ page, /** @type {number} */ number) =>
  page
    .getByTestId('job')
    .filter({ has: page.locator('.number', { hasText: new RegExp(`^${number}$`) }) });
const eventLines = (/** @type {Page} */ page) => page.getByTestId('event');
const textOf = async (/** @type {Page} */ page, /** @type {string} */ testId) =>
  (await page.getByTestId(testId).textContent()) ?? '';

/** The status of a job as the page shows it. */
const shownStatus = (/** @type {Page} */ page, /** @type {number} */ number) =>
  jobRow(page, number).getAttribute('data-status');

/** Changes a job as somebody with psql would, to a status that it does not have. */
async function changeInDatabase(/** @type {string} */ orgId, /** @type {number} */ number) {
  const { rows } = await demo.pool.query(
    `update cataloging_jobs set status = case status when 'done' then 'queued' else 'done' end
     where org_id = $1 and number = $2 returning id, status`,
    [orgId, number],
  );
  return /** @type {{ id: string, status: string }} */ (rows[0]);
}

const waitForStatus = (
  /** @type {Page} */ page,
  /** @type {number} */ number,
  /** @type {string} */ status,
) =>
  waitUntil(() => shownStatus(page, number), `job ${number} to be shown as ${status}`, {
    accept: (seen) => seen === status,
  });

/** The events that a page lists, as "type: text", newest first. */
const listed = (/** @type {Page} */ page) =>
  eventLines(page).evaluateAll((lines) =>
    lines.map((line) => /** @type {HTMLElement} */ (line).dataset.kind),
  );

/**
 * Changes a job of the organisation and waits until a page of it lists one event more: whatever
 * was sent to this page before has then arrived.
 */
async function settle(/** @type {Page} */ page, /** @type {string} */ orgId) {
  const before = await textOf(page, 'change-count');
  await changeInDatabase(orgId, 10);
  await waitUntil(() => textOf(page, 'change-count'), 'one more change on the page', {
    accept: (seen) => seen !== before,
  });
}

const clearEvents = () =>
  Promise.all([amara, bo, dana].map((page) => page.getByTestId('clear-events').click()));

describe('the pages of two organisations', () => {
  test('show each person their own organisation', async () => {
    assert.equal(await textOf(amara, 'organisation'), 'City Library');
    assert.equal(await textOf(bo, 'organisation'), 'City Library');
    assert.equal(await textOf(dana, 'organisation'), 'University Archive');
    assert.match(await textOf(amara, 'bulk'), /10,000/);
    assert.match(await textOf(dana, 'bulk'), /900/);
  });

  test('a change on a page arrives on every page of the organisation and on no other', async () => {
    await clearEvents();
    const target = (await shownStatus(bo, 1)) === 'in_review' ? 'Done' : 'In review';
    await jobRow(bo, 1).getByRole('button', { name: target }).click();
    await waitForStatus(amara, 1, target === 'Done' ? 'done' : 'in_review');
    await eventLines(bo).first().waitFor();
    await amara.getByTestId('toasts').getByText(/№ 1 /).waitFor();

    assert.deepEqual(await listed(amara), ['job.status_changed']);
    assert.deepEqual(await listed(bo), ['job.status_changed']);
    assert.equal(await bo.getByTestId('own').count(), 1, 'Bo did it in this tab');
    assert.equal(await amara.getByTestId('own').count(), 0, 'Amara did not');
    assert.equal(await bo.getByTestId('toasts').getByText(/№ 1 /).count(), 0, 'Bo knows already');

    await settle(dana, ARCHIVE);
    assert.deepEqual(await listed(dana), ['job.status_changed'], 'only what Dana waited for');
  });

  test('a change in psql arrives', async () => {
    const { status } = await changeInDatabase(LIBRARY, 2);
    await Promise.all([waitForStatus(amara, 2, status), waitForStatus(bo, 2, status)]);
  });

  test('a flag is raised on one page, and resolved on another', async () => {
    await clearEvents();
    const open = Number(await textOf(amara, 'open-flags'));
    await jobRow(amara, 4).getByTestId('raise-flag').click();
    await amara.getByTestId('flag-reason').fill('Shelf mark is taken');
    await amara.getByTestId('flag-submit').click();

    const flag = bo.getByTestId('flag').filter({ hasText: '№ 4 ' });
    await flag.getByText('Shelf mark is taken').waitFor();
    assert.equal(Number(await textOf(bo, 'open-flags')), open + 1);
    await waitUntil(() => jobRow(bo, 4).locator('.flag').textContent(), 'the count of the job', {
      accept: (text) => text === '⚑1',
    });

    await flag.getByTestId('resolve-flag').click();
    await waitUntil(() => textOf(amara, 'open-flags'), 'the flag to be gone', {
      accept: (text) => Number(text) === open,
    });
    await waitUntil(() => listed(amara), 'both events', { accept: (kinds) => kinds.length === 2 });
    assert.deepEqual(await listed(amara), ['flag.updated', 'flag.created']);
  });

  test('a change of a column that nobody watches is no event', async () => {
    await clearEvents();
    await demo.pool.query(
      'update cataloging_jobs set progress = 42 where org_id = $1 and number < 9',
      [LIBRARY],
    );
    await settle(amara, LIBRARY);
    assert.deepEqual(await listed(amara), ['job.status_changed']);
  });

  test('10,000 changes at once are a few messages, and the pages read anew', async () => {
    await clearEvents();
    await bo.getByTestId('bulk').click();
    await waitUntil(() => textOf(amara, 'change-count'), 'all changes to be told', {
      accept: (text) => text === '10,000',
    });
    assert.ok((await listed(amara)).includes('job.refresh'));
    assert.ok(
      Number(await textOf(amara, 'message-count')) <= 10,
      await textOf(amara, 'message-count'),
    );
    const { rows } = await demo.pool.query(
      'select number, status from cataloging_jobs where org_id = $1 and number <= 10',
      [LIBRARY],
    );
    for (const page of [amara, bo]) {
      for (const { number, status } of rows) await waitForStatus(page, number, status);
    }
    await clearEvents();
    await settle(dana, ARCHIVE);
    assert.deepEqual(await listed(dana), ['job.status_changed']);
  });

  test('a filtered page follows too', async () => {
    await changeInDatabase(LIBRARY, 3);
    const { status } = await changeInDatabase(LIBRARY, 3);
    const label = status === 'done' ? /^Done/ : /^Queued/;
    await bo
      .getByRole('group', { name: 'Show jobs by status' })
      .getByRole('button', { name: label })
      .click();
    await jobRow(bo, 3).waitFor();
    await changeInDatabase(LIBRARY, 3);
    await jobRow(bo, 3).waitFor({ state: 'detached' });
    await bo
      .getByRole('group', { name: 'Show jobs by status' })
      .getByRole('button', { name: /^All/ })
      .click();
    await jobRow(bo, 3).waitFor();
  });
});

test('a lone change is on the screen within the promise', async (t) => {
  await settle(amara, LIBRARY);
  await clearEvents();
  for (let change = 1; change <= LONE_CHANGES; change += 1) {
    // Alone is a change whose organisation has been quiet: else it may wait for the window.
    const quietSince = performance.now();
    await waitUntil(() => performance.now() - quietSince > WINDOW_MS, 'the window to be over');
    await settle(amara, LIBRARY);
  }
  const latencies = await amara
    .getByTestId('latency')
    .evaluateAll((places) =>
      places.map((place) => Number(/** @type {HTMLElement} */ (place).dataset.ms)),
    );
  assert.equal(latencies.length, LONE_CHANGES);
  const median = parseInt(await textOf(amara, 'latency-median'), 10);
  const sorted = latencies.sort((a, b) => a - b);
  assert.equal(median, sorted[Math.floor(LONE_CHANGES / 2)], 'the page shows their median');
  t.diagnostic(`commit to screen: ${sorted.join(', ')} ms`);
  assert.ok(median < LATENCY_MS, `median ${median} ms of ${sorted}`);
});

test("another organisation's person cannot join the channel", async () => {
  const answer = await dana.evaluate(async (topic) => {
    const { token, realtime } = JSON.parse(sessionStorage.getItem('session') ?? '');
    const client = /** @type {any} */ (globalThis).supabase.createClient(
      realtime.url,
      realtime.key,
      {
        accessToken: async () => token,
      },
    );
    await client.realtime.setAuth(token);
    const channel = client.channel(topic, { config: { private: true } });
    return new Promise((resolve) => {
      channel.subscribe((/** @type {string} */ status, /** @type {Error} */ error) => {
        resolve(`${status}: ${error?.message}`);
        client.removeAllChannels();
      });
    });
  }, `notifications:org_${LIBRARY}`);
  assert.match(answer, /^CHANNEL_ERROR: .*Unauthorized/);
});

test('without Realtime the page says so, and everything is there when it is back', async () => {
  const delivered = await demo.pool.query('select outbox.wait_until_delivered() as all');
  assert.equal(delivered.rows[0].all, true);
  await bo.getByTestId('realtime-stop').click();
  await amara.locator('[data-testid=connection][data-state=away]').waitFor();
  const { status } = await changeInDatabase(LIBRARY, 5);
  await bo.getByTestId('sink-error').filter({ hasText: /\S/ }).waitFor();
  assert.notEqual(await textOf(bo, 'sink-state'), 'running');
  assert.equal(await textOf(bo, 'sink-waiting'), '1');

  await bo.getByTestId('realtime-start').click();
  await Promise.all([waitForStatus(amara, 5, status), waitForStatus(bo, 5, status)]);
  await amara.locator('[data-testid=connection][data-state=live]').waitFor();
  await waitUntil(() => textOf(bo, 'sink-state'), 'the sink to run again', {
    timeoutMs: 70_000,
    accept: (state) => state === 'running',
  });
  await waitUntil(() => textOf(bo, 'sink-waiting'), 'nothing to wait', {
    accept: (text) => text === '0',
  });
  await settle(amara, LIBRARY);
  await settle(dana, ARCHIVE);
});

test('signing out forgets the person', async () => {
  await dana.getByTestId('sign-out').click();
  await dana.getByTestId('people').getByRole('button', { name: 'Dana' }).waitFor();
  await dana.reload();
  await dana.getByTestId('people').waitFor();
});
