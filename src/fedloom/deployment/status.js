"use strict";
// Puts a fresh copy of the page's content in place every two seconds, unless somebody is selecting text.
const lost = document.querySelector(".lost");
async function look() {
  try {
    const answer = await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.statusText);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const old = document.querySelector("main"), now = fresh.querySelector("main");
    if (old.innerHTML !== now.innerHTML && getSelection().isCollapsed) {
      old.replaceWith(now);
      document.title = fresh.title;
    }
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
  setTimeout(look, 2000);
}
setTimeout(look, 2000);
