// @ts-check
/** The list of jobs: a page of it, the status buttons, and the button that advances them all. */
import { call, createRecent, createRefetch } from './api.mjs';
import { createPager, createRows, element, find, format, setText, toast } from './dom.mjs';

/** @type {Record<string, string>} */
export const STATUSES = {
  queued: 'Queued',
  in_progress: 'In progress',
  in_review: 'In review',
  done: 'Done',
};
/** Jobs that changed elsewhere are looked up by their ids when they are few, to name them. */
const LOOKED_UP_MAX = 20;
const BULK_SIZE = 10_000;

/**
 * @typedef {object} Job
 * @property {string} id
 * @property {number} number
 * @property {string} title
 * @property {string} status
 * @property {number} progress
 * @property {string | null} assignee
 * @property {number} flags how many are open
 */

export const nameOf = (/** @type {{ number: number, title: string }} */ { number, title }) =>
  `№ ${format(number)} ${title}`;

/** @param {{ onFlag: (job: Job) => void }} options */
export function createJobs({ onFlag }) {
  const root = find('.jobs');
  const bulk = find('[data-testid=bulk]');
  const view = { page: 0, status: '' };
  /** @type {Job[]} */
  let jobs = [];
  /** @type {ReturnType<typeof createRecent<Job>>} */
  const recent = createRecent();

  const rows = createRows(
    find('.rows', root),
    (job) => job.id,
    (/** @type {Job} */ job) => createRow(job, { onStatus: changeStatus, onFlag }),
  );
  const pager = createPager(find('.pager', root), (page) => show({ page }));
  const filters = createFilters(find('.filters', root), (status) => show({ status, page: 0 }));

  const refetch = createRefetch({
    all: async () =>
      accept(await call('GET', `jobs?${new URLSearchParams({ ...view, page: `${view.page}` })}`)),
    some: async (ids) => {
      const answer = await call('GET', `jobs?ids=${ids.join(',')}`);
      recent.add(answer.jobs);
      const fetched = new Map(answer.jobs.map((/** @type {Job} */ job) => [job.id, job]));
      accept({ ...answer, jobs: jobs.map((job) => fetched.get(job.id) ?? job) });
      ids.forEach((id) => rows.flash(id));
    },
  });

  /** @param {{ jobs: Job[], counts: Record<string, number>, pageSize: number }} answer */
  function accept({ jobs: current, counts, pageSize }) {
    jobs = current;
    const all = Object.values(counts).reduce((sum, count) => sum + count, 0);
    rows.render(jobs);
    filters.render(view.status, counts, all);
    pager.render({
      page: view.page,
      pageSize,
      total: view.status ? (counts[view.status] ?? 0) : all,
    });
    setText(bulk, `Advance ${format(Math.min(all, BULK_SIZE))} jobs`);
  }

  const show = (/** @type {Partial<typeof view>} */ wanted) => {
    Object.assign(view, wanted);
    return refetch.all();
  };

  /**
   * Shows the change at once and takes it back if the server refuses.
   *
   * @param {Job} job
   * @param {string} status
   */
  async function changeStatus(job, status) {
    const replace = (/** @type {Job} */ other) => {
      jobs = jobs.map((each) => (each.id === other.id ? other : each));
      rows.render(jobs);
    };
    replace({ ...job, status });
    try {
      replace(await call('PATCH', `jobs/${job.id}`, { status }));
    } catch (error) {
      replace(job);
      toast(`${nameOf(job)} stays as it is: ${/** @type {Error} */ (error).message}`, 'trouble');
    }
  }

  bulk.addEventListener('click', async () => {
    bulk.toggleAttribute('disabled', true);
    try {
      await call('POST', 'jobs/advance');
    } catch (error) {
      toast(/** @type {Error} */ (error).message, 'trouble');
    }
    bulk.toggleAttribute('disabled', false);
  });

  return {
    load: refetch.all,
    /**
     * Reads what changed, and no more: a few jobs by their ids, else those on the screen. A filter
     * is another matter, since jobs enter and leave its page.
     *
     * @param {string[]} ids
     */
    changed: async (ids) => {
      const shown = ids.filter((id) => jobs.some((job) => job.id === id));
      const wanted = ids.length <= LOOKED_UP_MAX ? ids : shown;
      if (wanted.length === 0) return refetch.all();
      await refetch.some(wanted);
      if (view.status) await refetch.all();
    },
    /** The job as it was last seen; undefined when it never was. */
    find: (/** @type {string} */ id) => recent.find(id) ?? jobs.find((job) => job.id === id),
  };
}

/**
 * @param {Job} first
 * @param {{ onStatus: (job: Job, status: string) => void, onFlag: (job: Job) => void }} listeners
 */
function createRow(first, { onStatus, onFlag }) {
  let job = first;
  const meta = element('small');
  const bar = element('span', { class: 'progress', 'aria-hidden': 'true' });
  const buttons = Object.entries(STATUSES).map(([status, label]) =>
    element(
      'button',
      {
        type: 'button',
        data: { status },
        onclick: () => job.status !== status && onStatus(job, status),
      },
      label,
    ),
  );
  const flags = element('span', { class: 'count' });
  const flag = element(
    'button',
    {
      type: 'button',
      class: 'quiet flag',
      data: { testid: 'raise-flag' },
      'aria-label': `Raise a flag on job ${job.number}`,
      onclick: () => onFlag(job),
    },
    element('span', { 'aria-hidden': 'true' }, '⚑'),
    flags,
  );
  const row = element(
    'li',
    { class: 'job', data: { testid: 'job', id: job.id } },
    element('span', { class: 'number' }, format(job.number)),
    element('div', { class: 'what' }, element('strong', {}, job.title), meta, bar),
    element(
      'div',
      { class: 'segments', role: 'group', 'aria-label': `Status of job ${job.number}` },
      ...buttons,
    ),
    flag,
  );

  const update = (/** @type {Job} */ current) => {
    job = current;
    row.dataset.status = job.status;
    setText(meta, `${job.assignee ?? 'Nobody'} · ${job.progress} %`);
    bar.style.setProperty('--progress', `${job.progress}%`);
    for (const button of buttons) {
      button.setAttribute('aria-pressed', String(button.dataset.status === job.status));
    }
    setText(flags, job.flags === 0 ? '' : String(job.flags));
    flag.toggleAttribute('data-raised', job.flags > 0);
  };
  return { element: row, update };
}

/**
 * @param {HTMLElement} place
 * @param {(status: string) => void} choose
 */
function createFilters(place, choose) {
  const made = Object.entries({ '': 'All', ...STATUSES }).map(([status, label]) => {
    const count = element('span', { class: 'count' });
    const button = element(
      'button',
      { type: 'button', data: { status }, onclick: () => choose(status) },
      label,
      ' ',
      count,
    );
    place.append(button);
    return { status, button, count };
  });
  return {
    /**
     * @param {string} chosen
     * @param {Record<string, number>} counts
     * @param {number} all
     */
    render(chosen, counts, all) {
      for (const { status, button, count } of made) {
        button.setAttribute('aria-pressed', String(status === chosen));
        setText(count, format(status ? (counts[status] ?? 0) : all));
      }
    },
  };
}
