// @ts-check
/** The open flags, and the dialogue that raises one. */
import { call, createRecent, createRefetch } from './api.mjs';
import { createPager, createRows, element, find, format, setText, toast } from './dom.mjs';
import { nameOf } from './jobs.mjs';

/**
 * @typedef {object} Flag
 * @property {string} id
 * @property {string} job_id
 * @property {string} reason
 * @property {boolean} resolved
 * @property {string} raised_at
 * @property {string | null} raised_by
 * @property {number} number of its job
 * @property {string} title of its job
 */

/**
 * @param {object} options
 * @param {(jobIds: string[]) => Promise<unknown>} options.onChange told of the jobs concerned
 */
export function createFlags({ onChange }) {
  const root = find('.flags');
  let page = 0;
  /** @type {ReturnType<typeof createRecent<Flag>>} */
  const recent = createRecent();
  const rows = createRows(
    find('.rows', root),
    (flag) => flag.id,
    (/** @type {Flag} */ flag) => createRow(flag, resolve),
  );
  const pager = createPager(find('.pager', root), (wanted) => {
    page = wanted;
    refetch.all();
  });

  const load = async () => {
    const { flags, open, pageSize } = await call('GET', `flags?page=${page}`);
    rows.render(flags);
    pager.render({ page, pageSize, total: open });
    setText(find('[data-slot=open]', root), format(open));
  };
  const refetch = createRefetch({
    all: load,
    some: async (ids) => {
      const { flags } = await call('GET', `flags?ids=${ids.join(',')}`);
      recent.add(flags);
      // A flag that opens or closes moves all others, so the page is read as well.
      await Promise.all([
        load(),
        onChange([...new Set(flags.map((/** @type {Flag} */ flag) => flag.job_id))]),
      ]);
      ids.forEach((id) => rows.flash(id));
    },
  });

  async function resolve(/** @type {Flag} */ flag) {
    try {
      await call('PATCH', `flags/${flag.id}`, { resolved: true });
      await refetch.some([flag.id]);
    } catch (error) {
      toast(/** @type {Error} */ (error).message, 'trouble');
    }
  }

  return {
    load: refetch.all,
    changed: refetch.some,
    find: recent.find,
    raise: createDialogue(async (job, reason) => {
      const { id } = await call('POST', 'flags', { job_id: job.id, reason });
      await refetch.some([id]);
    }),
  };
}

/**
 * @param {Flag} flag
 * @param {(flag: Flag) => void} onResolve
 */
function createRow(flag, onResolve) {
  const raised = `${flag.raised_by ?? 'Somebody'}, ${new Date(flag.raised_at).toLocaleString([], {
    dateStyle: 'medium',
    timeStyle: 'short',
  })}`;
  const row = element(
    'li',
    { class: 'flag-row', data: { testid: 'flag', id: flag.id } },
    element(
      'div',
      { class: 'what' },
      element('strong', {}, flag.reason),
      element('small', {}, nameOf(flag)),
      element('small', {}, raised),
    ),
    element(
      'button',
      {
        type: 'button',
        data: { testid: 'resolve-flag' },
        'aria-label': `Resolve the flag on job ${flag.number}`,
        onclick: () => onResolve(flag),
      },
      'Resolve',
    ),
  );
  return { element: row, update: () => {} };
}

/** @typedef {import('./jobs.mjs').Job} Job */

/**
 * @param {(job: Job, reason: string) => Promise<void>} onRaise
 * @returns {(job: Job) => void} opens it for a job
 */
function createDialogue(onRaise) {
  const dialog = /** @type {HTMLDialogElement} */ (find('#raise'));
  const form = /** @type {HTMLFormElement} */ (find('form', dialog));
  /** @type {Job} */
  let job;
  find('[data-slot=cancel]', dialog).addEventListener('click', () => dialog.close(''));
  form.addEventListener('submit', async () => {
    try {
      await onRaise(job, String(new FormData(form).get('reason')));
    } catch (error) {
      toast(/** @type {Error} */ (error).message, 'trouble');
    }
  });
  return (wanted) => {
    job = wanted;
    form.reset();
    setText(find('[data-slot=job]', dialog), nameOf(job));
    dialog.showModal();
  };
}
