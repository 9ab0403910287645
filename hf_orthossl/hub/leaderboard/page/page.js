// Follow links and forms of the board without a reload: the address bar holds the state, the server draws it.
const view = element.querySelector(".view");
const status = element.querySelector("#board-status");
let turn = 0, waiting = 0, more = false;

const settings = () => [...new URLSearchParams(location.search)].filter(([name]) => name.startsWith("__"));

const box = () => view.querySelector("[type=search]");

function unfold() {
  // Only narrow screens have the button; its filters stay open from one view to the next.
  view.querySelector("#narrow")?.classList.toggle("open", more);
  view.querySelector("#more")?.setAttribute("aria-expanded", more);
}

async function show(query, visit) {
  const current = ++turn, asked = box()?.value;
  view.setAttribute("aria-busy", "true");
  let html = null;
  try { html = await server.show(query); } catch (error) { html = null; }
  if (current !== turn) return;
  view.removeAttribute("aria-busy");
  if (typeof html !== "string") {
    status.textContent = "The board does not answer: try again in a moment.";
    status.classList.remove("sr");
    return;
  }
  status.classList.add("sr");
  const before = view.dataset.show, old = box(), focused = document.activeElement;
  const held = element.contains(focused) ? focused.id : "";
  const caret = held && focused.type === "search" ? focused.selectionStart : null;
  // Keep letters typed while waiting for the answer, and the space at the end of a search, which the server drops.
  const typed = old && (visit === "replaceState" || old.value !== asked) ? old.value : null;
  view.innerHTML = html;
  if (typed !== null && box()) box().value = typed;
  view.dataset.show = new URLSearchParams(query).get("show") || "table";
  unfold();
  status.textContent = view.querySelector("[data-status]")?.textContent || "";
  if (visit) {
    const all = new URLSearchParams(query);
    settings().forEach(([name, value]) => all.set(name, value));
    const text = all.toString();
    history[visit](null, "", location.pathname + (text ? "?" + text : ""));
    // The page around a Space shows the same address, so that it can be shared.
    if (window.parent !== window) window.parent.postMessage({ queryString: text, hash: "" }, "https://huggingface.co");
  }
  if (before && before !== view.dataset.show) {
    view.querySelector("h2")?.focus({ preventScroll: true });
    element.scrollIntoView({ block: "start" });
  } else if (held) {
    const again = document.getElementById(held) || view.querySelector("h2");
    again?.focus({ preventScroll: true });
    if (caret !== null && again.setSelectionRange) again.setSelectionRange(caret, caret);
  }
}

function send(form, visit) {
  clearTimeout(waiting);
  const kept = [...new FormData(form)].filter(([name, value]) => value);
  show("?" + new URLSearchParams(kept), visit);
}

function later() {
  clearTimeout(waiting);
  // Send the box and the other choices as they are by then, after any request that is still running.
  waiting = setTimeout(() => {
    if (view.hasAttribute("aria-busy")) later();
    else if (box()) send(box().form, "replaceState");
  }, 250);
}

element.addEventListener("click", async (event) => {
  const copy = event.target.closest("[data-copy], [data-copy-address]");
  if (copy) {
    const text = document.getElementById(copy.dataset.copy);
    try {
      await navigator.clipboard.writeText(text ? text.textContent : location.href);
      copy.textContent = status.textContent = "Copied";
    } catch (error) {
      // Not every frame may write to the clipboard: select the text or show the address instead.
      if (text) getSelection().selectAllChildren(text);
      copy.textContent = text ? "Selected: copy it" : location.href;
    }
    return;
  }
  if (event.target.closest("[data-more]")) {
    more = !more;
    unfold();
    return;
  }
  const link = event.target.closest("[data-go]");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  clearTimeout(waiting);
  show(link.dataset.go || link.getAttribute("href"), "pushState");
});
element.addEventListener("change", (event) => { if (event.target.matches("select")) send(event.target.form, "pushState"); });
element.addEventListener("input", (event) => {
  if (event.target.matches("[type=search]")) later();
});
element.addEventListener("submit", (event) => { event.preventDefault(); send(event.target, "pushState"); });
window.addEventListener("popstate", () => {
  clearTimeout(waiting);
  show(location.search, "");
});
show(location.search, "");
