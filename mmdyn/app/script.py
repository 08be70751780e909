"""What the page does in the browser, beyond what gradio does."""

from __future__ import annotations

from mmdyn.app.reading import Limits

REFUSED = '<p id="refused" role="alert"></p>'
"""Where the script says that a file is too large; to stand somewhere on the page."""

# - A slider tells of a pointer's release only. Told of the keyboard's too, a moment after the last
#   key, so that a key held down is one change.
# - Pictures to pick from have no names.
# - A file too large is refused before gradio looks at it, which would ask the server how an upload
#   goes that never began. The server has the same limit.
_SCRIPT = """
<script>
(() => {
  let waiting;
  document.addEventListener('keyup', event => {
    const input = event.target;
    if (!input.matches('.ratio input')) return;
    if (input.type === 'number') {
      if (event.key === 'Enter') input.blur();
    } else if (/^(Arrow|Page|Home|End)/.test(event.key)) {
      clearTimeout(waiting);
      waiting = setTimeout(
        () => input.dispatchEvent(new PointerEvent('pointerup', {bubbles: true})), 300);
    }
  });

  new MutationObserver(() =>
    document.querySelectorAll('.gallery-item').forEach(
      (item, number) => item.setAttribute('aria-label', `Example ${number + 1}`))
  ).observe(document, {childList: true, subtree: true});

  const refuse = event => {
    const files = event.target.files || event.dataTransfer?.files;
    const told = document.getElementById('refused');
    if (!files?.length || !told) return;
    const large = [...files].find(file => file.size > LIMIT);
    told.textContent = large
      ? `${large.name} has ${(large.size / 2 ** 20).toFixed(1)} MiB, the limit is SHOWN MiB.` : '';
    if (!large) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    event.target.value = '';
  };
  for (const name of ['change', 'drop']) document.addEventListener(name, refuse, true);
})();
</script>
"""


def script(limits: Limits) -> str:
    """The script, for the page's head.

    Args:
        limits: to what is uploaded.
    """
    return _SCRIPT.replace('LIMIT', str(limits.upload_bytes)).replace('SHOWN', f'{limits.upload:g}')
